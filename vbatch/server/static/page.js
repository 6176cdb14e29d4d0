// Asks for the same page again and puts its <main> in place of the old one. Without it, everything works by hand.
"use strict";
(() => {
  const box = document.getElementById("refresh");
  const news = document.getElementById("news");
  let main = document.getElementById("main");
  if (!box || !main.dataset.refresh) return;
  document.getElementById("refresh-label").hidden = false;

  const inUse = () => {
    const chosen = getSelection();
    const selects = chosen && !chosen.isCollapsed && main.contains(chosen.anchorNode);
    return document.hidden || !box.checked || selects;
  };

  const replace = (text) => {
    const page = new DOMParser().parseFromString(text, "text/html");
    const fresh = page.getElementById("main");
    if (!fresh) return;
    const active = main.contains(document.activeElement) ? document.activeElement : null;
    const inside = active ? [...main.querySelectorAll("a, button, [tabindex]")].indexOf(active) : -1;
    const said = main.dataset.news;
    main.replaceWith(fresh);
    main = fresh;
    if (active) {
      const same = active.id ? document.getElementById(active.id) : null;
      (same || main.querySelectorAll("a, button, [tabindex]")[inside] || main).focus({ preventScroll: true });
    }
    document.title = page.title;
    if (main.dataset.news !== said) news.textContent = main.dataset.news;
  };

  const again = async () => {
    if (!inUse()) {
      try {
        const answer = await fetch(location.href, { credentials: "same-origin" });
        if (answer.redirected) return location.reload(); // the login has ended
        if (answer.ok) {
          const text = await answer.text();
          if (!inUse()) replace(text);
        } else news.textContent = "The server cannot answer now.";
      } catch {
        news.textContent = "The server does not answer.";
      }
    }
    if (main.dataset.refresh) setTimeout(again, Number(main.dataset.refresh) * 1000);
  };
  setTimeout(again, Number(main.dataset.refresh) * 1000);
})();

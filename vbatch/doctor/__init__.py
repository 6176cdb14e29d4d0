"""Find after a reboot what is wrong and why, repair what is provably vbatch's own, and report what happened.

``registry`` holds all checks in causal order and the entry of every finding; ``running.examine`` runs them.
"""

/* A libc that fails on demand, loaded before the real one into the workers of tests.

   It does nothing until a process arms it (tests/rigs/misfortune.py does, by ctypes). Then it counts the calls that
   make something durable, in all threads together: fsync, fdatasync, link, rename, unlink, and the COMMIT that a
   client sends to PostgreSQL. The N-th one fails, or kills the process before it is made. And it shows a wall clock
   that is off by as many seconds as a file says; monotonic clocks are left alone. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static atomic_int armed, calls, fails_at, failing_with;
static char only[256];
static int report = -1;
static volatile const long *offset; /* seconds, in a file that the test writes */

/* Count the calls whose "name path" matches the pattern `what`; the nth of them fails with `error`, or kills where that is 0.
   With nth 0 they are only counted. Each is written to the file `seen`, a line each. */
void misfortune_arm(int nth, int error, const char *what, const char *seen)
{
    snprintf(only, sizeof only, "%s", what);
    report = open(seen, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    fails_at = nth;
    failing_with = error;
    armed = 1;
}

/* Show a wall clock that is off by the number of seconds (a long) in this file, at every moment anew. */
int misfortune_clock(const char *path)
{
    int handle = open(path, O_RDONLY | O_CLOEXEC);
    void *mapped = handle < 0 ? MAP_FAILED : mmap(NULL, sizeof(long), PROT_READ, MAP_SHARED, handle, 0);
    if (handle >= 0) close(handle);
    if (mapped == MAP_FAILED) return -1;
    offset = mapped;
    return 0;
}

/* Whether this call shall fail; errno is set then. */
static int strikes(const char *name, const char *path)
{
    if (!armed) return 0;
    int saved = errno;
    char line[4352];
    int length = snprintf(line, sizeof line, "%s %s\n", name, path);
    errno = saved;
    if (length < 0 || (size_t)length >= sizeof line ) return 0;
    line[length - 1] = 0;
    int counts = fnmatch(only, line, 0) == 0;
    line[length - 1] = '\n';
    errno = saved;
    if (!counts) return 0;
    int now = atomic_fetch_add(&calls, 1) + 1;
    if (report >= 0 && write(report, line, (size_t)length) != length) _exit(99);
    errno = saved;
    if (now != fails_at) return 0;
    if (failing_with == 0) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
    errno = failing_with;
    return 1;
}

static int strikes_at(const char *name, int handle)
{
    if (!armed) return 0;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = 0;
    return strikes(name, path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int fsync(int handle) { return strikes_at("fsync", handle) ? -1 : REAL(fsync)(handle); }
int fdatasync(int handle) { return strikes_at("fdatasync", handle) ? -1 : REAL(fdatasync)(handle); }
int link(const char *from, const char *to) { return strikes("link", to) ? -1 : REAL(link)(from, to); }
int rename(const char *from, const char *to) { return strikes("rename", to) ? -1 : REAL(rename)(from, to); }
int unlink(const char *path) { return strikes("unlink", path) ? -1 : REAL(unlink)(path); }

ssize_t send(int handle, const void *data, size_t length, int flags)
{
    if (armed && memmem(data, length, "COMMIT", 6) != NULL && strikes("commit", "")) return -1;
    return REAL(send)(handle, data, length, flags);
}

static __typeof__(&clock_gettime) real_clock_gettime;

__attribute__((constructor)) static void find_the_clock(void) { real_clock_gettime = REAL(clock_gettime); }

int clock_gettime(clockid_t which, struct timespec *moment)
{
    if (real_clock_gettime == NULL) find_the_clock(); /* another library's constructor came first */
    int result = real_clock_gettime(which, moment);
    if (offset != NULL && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) moment->tv_sec += *offset;
    return result;
}

int gettimeofday(struct timeval *restrict moment, void *restrict zone)
{
    (void)zone;
    struct timespec now;
    int result = clock_gettime(CLOCK_REALTIME, &now);
    moment->tv_sec = now.tv_sec;
    moment->tv_usec = now.tv_nsec / 1000;
    return result;
}

time_t time(time_t *moment)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (moment != NULL) *moment = now.tv_sec;
    return now.tv_sec;
}

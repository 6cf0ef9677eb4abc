/* What the crash scenarios run in containers.  gcc -O2 -static -o writer writer.c
 *
 *   writer lines RATE COUNT   writes numbered lines with the time at which each was about to be written,
 *                             RATE a second, until SIGTERM; then puts their number into the file COUNT
 *   writer oom GO             waits until the file GO is there, then takes memory until it is killed
 *   writer exit GO CODE       waits until the file GO is there, touches GO.CODE, ends with CODE
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t told;

static void tell(int signal)
{
    (void)signal;
    told = 1;
}

static long long now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void until(long long when)
{
    struct timespec t = {when / 1000000000LL, when % 1000000000LL};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

static int note(const char *path, long count, const char *end)
{
    char text[64];
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    int n = snprintf(text, sizeof text, "%ld %s\n", count, end);
    return fd < 0 || write(fd, text, n) != n;
}

/* One write for each line, as a program does that flushes its lines.  After having waited it catches up. */
static int lines(long rate, const char *path)
{
    struct sigaction action = {.sa_handler = tell, .sa_flags = SA_RESTART};
    sigaction(SIGTERM, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_TIMERSLACK, 1);
    long long start = now(), step = 1000000000LL / rate;
    long count = 0;
    for (; !told; count++) {
        char line[64];
        if (now() < start + count * step)
            until(start + count * step);
        int n = snprintf(line, sizeof line, "line %09ld at %015lld end\n", count, now());
        if (write(1, line, n) != n)
            return note(path, count, strerror(errno)) + 1;
    }
    return note(path, count, "whole");
}

static void wait_for(const char *path)
{
    while (access(path, F_OK))
        until(now() + 5000000);
}

static void oom(void)
{
    for (;;) {
        char *more = malloc(1 << 20);
        if (more)
            memset(more, 1, 1 << 20);
    }
}

int main(int argc, char **argv)
{
    if (argc == 4 && !strcmp(argv[1], "lines"))
        return lines(atol(argv[2]), argv[3]);
    if (argc == 3 && !strcmp(argv[1], "oom")) {
        wait_for(argv[2]);
        oom();
    }
    if (argc == 4 && !strcmp(argv[1], "exit")) {
        char path[256];
        wait_for(argv[2]);
        snprintf(path, sizeof path, "%s.%s", argv[2], argv[3]);
        close(open(path, O_WRONLY | O_CREAT, 0644));
        return atoi(argv[3]);
    }
    return 2;
}

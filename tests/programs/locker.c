/* Takes locks as it is told on its input, a command a line, and answers each with a line.

   open PATH                         opens for reading and writing: "fd N"
   close FD                          "ok"
   dup FD                            "fd N"
   try   KIND FD MODE START LENGTH   F_SETLK, LOCK_NB: "ok" or "error ERRNO"
   wait  KIND FD MODE START LENGTH   F_SETLKW: the same
   test  KIND FD MODE START LENGTH   F_GETLK: "free" or "held MODE START LENGTH PID"
   alarm MILLISECONDS                a signal that is handled, after that time: "ok"
   child COMMAND ...                 a forked child carries out the command and answers, then ends

   KIND is posix, ofd or flock; MODE is r, w or u. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static void handled(int number)
{
    (void)number;
}

static void answer(int result)
{
    if (result == 0)
        puts("ok");
    else
        printf("error %d\n", errno);
}

static void lock(const char *verb, const char *rest)
{
    char kind[8], mode;
    int fd;
    long long start, length;
    if (sscanf(rest, "%7s %d %c %lld %lld", kind, &fd, &mode, &start, &length) != 5) {
        puts("usage");
        return;
    }
    if (strcmp(kind, "flock") == 0) {
        int operation = mode == 'u' ? LOCK_UN : mode == 'r' ? LOCK_SH : LOCK_EX;
        answer(flock(fd, operation | (strcmp(verb, "try") == 0 ? LOCK_NB : 0)));
        return;
    }
    int ofd = strcmp(kind, "ofd") == 0;
    struct flock request = {
        .l_type = mode == 'u' ? F_UNLCK : mode == 'r' ? F_RDLCK : F_WRLCK,
        .l_whence = SEEK_SET,
        .l_start = start,
        .l_len = length,
    };
    if (strcmp(verb, "try") == 0) {
        answer(fcntl(fd, ofd ? F_OFD_SETLK : F_SETLK, &request));
    } else if (strcmp(verb, "wait") == 0) {
        answer(fcntl(fd, ofd ? F_OFD_SETLKW : F_SETLKW, &request));
    } else if (fcntl(fd, ofd ? F_OFD_GETLK : F_GETLK, &request) != 0) {
        answer(-1);
    } else if (request.l_type == F_UNLCK) {
        puts("free");
    } else {
        printf("held %c %lld %lld %d\n", request.l_type == F_RDLCK ? 'r' : 'w', (long long)request.l_start,
               (long long)request.l_len, request.l_pid);
    }
}

static void carry_out(const char *line)
{
    char verb[8];
    int used = 0;
    if (sscanf(line, "%7s %n", verb, &used) != 1)
        return;
    const char *rest = line + used;
    if (strcmp(verb, "open") == 0) {
        char path[4096];
        int fd = sscanf(rest, "%4095[^\n]", path) == 1 ? open(path, O_RDWR) : -1;
        if (fd >= 0)
            printf("fd %d\n", fd);
        else
            answer(-1);
    } else if (strcmp(verb, "dup") == 0) {
        printf("fd %d\n", dup(atoi(rest)));
    } else if (strcmp(verb, "close") == 0) {
        answer(close(atoi(rest)));
    } else if (strcmp(verb, "alarm") == 0) {
        long ms = atol(rest);
        struct itimerval timer = {.it_value = {ms / 1000, ms % 1000 * 1000}};
        answer(setitimer(ITIMER_REAL, &timer, NULL));
    } else if (strcmp(verb, "child") == 0) {
        pid_t child = fork();
        if (child == 0) {
            carry_out(rest);
            fflush(stdout);
            _exit(0);
        }
        waitpid(child, NULL, 0);
    } else {
        lock(verb, rest);
    }
}

int main(void)
{
    struct sigaction action = {.sa_handler = handled}; /* without SA_RESTART */
    sigaction(SIGALRM, &action, NULL);
    setvbuf(stdout, NULL, _IOLBF, 0);
    char line[8192];
    for (;;) {
        if (fgets(line, sizeof line, stdin) != NULL)
            carry_out(line);
        else if (ferror(stdin) && errno == EINTR)
            clearerr(stdin); /* the alarm came between two commands */
        else
            return 0;
    }
}

/* Rounds of lock, increment, unlock on a counter in a file, against whoever else does the same.

   lock_counter posix|ofd|flock FILE ROUNDS

   The file holds one 64-bit number at its start. Prints one line: the longest wait for the lock and the time
   of all rounds, in microseconds. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void change(int fd, const char *kind, int lock)
{
    if (strcmp(kind, "flock") == 0) {
        if (flock(fd, lock ? LOCK_EX : LOCK_UN) != 0)
            fail("flock");
        return;
    }
    struct flock request = {.l_type = lock ? F_WRLCK : F_UNLCK, .l_whence = SEEK_SET, .l_len = 8};
    if (fcntl(fd, strcmp(kind, "ofd") == 0 ? F_OFD_SETLKW : F_SETLKW, &request) != 0)
        fail("fcntl");
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    int fd = open(argv[2], O_RDWR);
    if (fd < 0)
        fail("open");
    int64_t longest = 0, began = now();
    for (long round = atol(argv[3]); round > 0; round--) {
        int64_t asked = now();
        change(fd, argv[1], 1);
        int64_t waited = now() - asked;
        if (waited > longest)
            longest = waited;
        uint64_t count;
        if (pread(fd, &count, sizeof count, 0) != sizeof count)
            fail("pread");
        count++;
        if (pwrite(fd, &count, sizeof count, 0) != sizeof count)
            fail("pwrite");
        change(fd, argv[1], 0);
    }
    printf("%lld %lld\n", (long long)longest, (long long)(now() - began));
    return 0;
}

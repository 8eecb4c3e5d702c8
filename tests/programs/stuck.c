/* One system call on a mount whose server does not answer.

   stuck OPERATION DIRECTORY

   Opens what it needs in DIRECTORY, says "ready", waits for a line, does the one call, and says how it ended.
   DIRECTORY has: file (64 KiB, readable and writable), other (a file), sub (a directory). */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    if (argc != 3 || chdir(argv[2]) != 0)
        return 2;
    const char *operation = argv[1];
    int fd = open("file", O_RDWR);
    volatile char *map = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    DIR *directory = opendir(".");
    if (fd < 0 || map == MAP_FAILED || directory == NULL)
        return 2;
    char buffer[4096] = "x";
    struct stat status;
    struct statvfs space;
    struct flock lock = {.l_type = F_WRLCK, .l_len = 1};
    if (strcmp(operation, "fsync") == 0 || strcmp(operation, "close") == 0)
        if (pwrite(fd, buffer, 100, 0) != 100)
            return 2;
    puts("ready");
    fflush(stdout);
    if (fgets(buffer + 1, 100, stdin) == NULL)
        return 2;
    long result = -2;
#define IS(name) strcmp(operation, name) == 0
    if (IS("open")) result = open("other", O_RDONLY);
    else if (IS("create")) result = open("new", O_CREAT | O_EXCL | O_RDWR, 0644);
    else if (IS("stat")) result = stat("other", &status);
    else if (IS("read")) result = pread(fd, buffer, 100, 8192);
    else if (IS("write")) result = pwrite(fd, buffer, 100, 8192);
    else if (IS("load")) result = map[16384];
    else if (IS("store")) result = map[16384] = 1;
    else if (IS("fsync")) result = fsync(fd);
    else if (IS("close")) { munmap((void *)map, 65536); result = close(fd); }
    else if (IS("truncate")) result = ftruncate(fd, 10);
    else if (IS("chmod")) result = fchmod(fd, 0600);
    else if (IS("readdir")) result = readdir(directory) != NULL;
    else if (IS("fcntl")) result = fcntl(fd, F_SETLKW, &lock);
    else if (IS("flock")) result = flock(fd, LOCK_EX);
    else if (IS("getlk")) result = fcntl(fd, F_GETLK, &lock);
    else if (IS("rename")) result = rename("other", "renamed");
    else if (IS("unlink")) result = unlink("other");
    else if (IS("mkdir")) result = mkdir("made", 0755);
    else if (IS("rmdir")) result = rmdir("sub");
    else if (IS("link")) result = link("other", "linked");
    else if (IS("symlink")) result = symlink("other", "symbolic");
    else if (IS("statfs")) result = statvfs(".", &space);
    else if (IS("getxattr")) result = getxattr("other", "user.none", buffer, sizeof buffer);
    else if (IS("fallocate")) result = fallocate(fd, 0, 0, 1 << 20);
    else if (IS("lseek")) result = lseek(fd, 0, SEEK_DATA);
    printf("returned %ld %d\n", result, errno);
    return 0;
}

/* Stands before fsync and fdatasync of a process and lets them fail as a disk does that
 * lost what was written: the call fails once, what was written through the file is gone,
 * and the next call succeeds.
 *
 * TIERD_TEST_FSYNC_AT    the n-th call fails, from 1
 * TIERD_TEST_FSYNC_WHILE every call fails for as long as this file is there
 * TIERD_TEST_FSYNC_TOLD  a file that gets the path of each for which a call failed, as a line */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static int calls;

static int fails(int fd) {
    int now = __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
    const char *at = getenv("TIERD_TEST_FSYNC_AT");
    const char *during = getenv("TIERD_TEST_FSYNC_WHILE");
    if (!(at && atoi(at) == now) && !(during && access(during, F_OK) == 0))
        return 0;
    struct stat about;
    if (fstat(fd, &about) == 0 && S_ISREG(about.st_mode) &&
        (fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY && ftruncate(fd, 0) != 0)
        abort();
    const char *told = getenv("TIERD_TEST_FSYNC_TOLD");
    if (told) {
        char link[64], path[4096];
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t len = readlink(link, path, sizeof path - 1);
        int made = open(told, O_CREAT | O_WRONLY | O_APPEND, 0600);
        if (len < 0 || made < 0)
            abort();
        path[len++] = '\n';
        if (write(made, path, len) != len)
            abort();
        close(made);
    }
    errno = EIO;
    return 1;
}

typedef int (*sync_call)(int);

int fsync(int fd) {
    return fails(fd) ? -1 : ((sync_call)dlsym(RTLD_NEXT, "fsync"))(fd);
}

int fdatasync(int fd) {
    return fails(fd) ? -1 : ((sync_call)dlsym(RTLD_NEXT, "fdatasync"))(fd);
}

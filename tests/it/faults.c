/* Fails calls of the C library on files under a folder, as a disk would. Preloaded into the program by tests/it/faults.rs.
 *
 * FAULTS_UNDER is the beginning of the paths that are meant; FAULTS_PLAN a file of six 32-bit numbers, which the test writes while the
 * program runs: which call (below; 0 is none), the errno, how many such calls pass first, how many then fail (-1: all), and, counted
 * here, how many were seen and how many failed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

enum { NONE, WRITE, HALF, PWRITE, FSYNC, FDATASYNC, RENAME, OPEN, TRUNCATE, UNLINK, MKDIR };
struct plan { int call, error, pass, fail, seen, failed; };

static volatile struct plan *plan(void) {
    static volatile struct plan *plan;
    const char *path = getenv("FAULTS_PLAN");
    if (plan == NULL && path != NULL) {
        int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, "open64");
        int file = real(path, O_RDWR | O_CLOEXEC);
        void *at = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *plan, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        if (file >= 0) close(file);
        if (at == MAP_FAILED) abort();
        plan = at;
    }
    return plan;
}

static int meant(const char *path) {
    const char *under = getenv("FAULTS_UNDER");
    return under != NULL && path != NULL && strncmp(path, under, strlen(under)) == 0;
}

/* Whether this call, of this kind and on this path, is to fail; errno is set then. */
static int fails(int call, const char *path) {
    volatile struct plan *p = plan();
    if (p == NULL || p->call != call || !meant(path)) return 0;
    int seen = __atomic_fetch_add(&p->seen, 1, __ATOMIC_SEQ_CST);
    if (seen < p->pass || (p->fail >= 0 && seen >= p->pass + p->fail)) return 0;
    __atomic_fetch_add(&p->failed, 1, __ATOMIC_SEQ_CST);
    errno = p->error;
    return 1;
}

static int fails_on(int call, int file) {
    volatile struct plan *p = plan();
    char link[32], path[4096];
    if (p == NULL || p->call != call) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return fails(call, path);
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

ssize_t write(int file, const void *bytes, size_t count) {
    REAL(write);
    if (fails_on(WRITE, file)) return -1;
    /* A part of it arrives; of a call of one byte or none nothing does. */
    if (fails_on(HALF, file)) return count < 2 ? -1 : real(file, bytes, count / 2);
    return real(file, bytes, count);
}
ssize_t pwrite64(int file, const void *bytes, size_t count, off64_t at) {
    REAL(pwrite64);
    return fails_on(PWRITE, file) ? -1 : real(file, bytes, count, at);
}
int fsync(int file) {
    REAL(fsync);
    return fails_on(FSYNC, file) ? -1 : real(file);
}
int fdatasync(int file) {
    REAL(fdatasync);
    return fails_on(FDATASYNC, file) ? -1 : real(file);
}
int ftruncate64(int file, off64_t length) {
    REAL(ftruncate64);
    return fails_on(TRUNCATE, file) ? -1 : real(file, length);
}
int rename(const char *from, const char *to) {
    REAL(rename);
    return fails(RENAME, to) ? -1 : real(from, to);
}
int unlink(const char *path) {
    REAL(unlink);
    return fails(UNLINK, path) ? -1 : real(path);
}
int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    return fails(MKDIR, path) ? -1 : real(path, mode);
}
int open64(const char *path, int flags, ...) {
    REAL(open64);
    mode_t mode = 0;
    if (flags & (O_CREAT | O_TMPFILE)) {
        va_list rest;
        va_start(rest, flags);
        mode = va_arg(rest, mode_t);
        va_end(rest);
    }
    return fails(OPEN, path) ? -1 : real(path, flags, mode);
}

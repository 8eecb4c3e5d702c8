/*
 * _supplement: the kernel's raw FUSE messages, seen on their way into and out of libfuse.
 *
 * pyfuse3 calls fuse_session_mount() of libfuse. This module is loaded with RTLD_GLOBAL before pyfuse3 and
 * defines that name too, so the dynamic linker binds pyfuse3's call to ours. Ours calls the real one and
 * then fuse_session_custom_io() (libfuse >= 3.13), which makes libfuse read requests and write replies
 * through two functions of this file:
 *
 *   hook_read    copies the facts of a request that libfuse does not pass on (lock owners, write flags, ...)
 *                and hands the operations that pyfuse3 lacks to Python: libfuse then sees EINTR and asks again
 *   hook_writev  edits one reply, that of FUSE_INIT
 *
 * Most requests do not get that far. Before pyfuse3 asks libfuse for one, its loop (loop.py) has receive() look
 * what the device has: what can be answered from caches is, there and then, and what Python takes is handed
 * over. Only a message for libfuse ends that, and is kept until hook_read is called for it.
 *
 * Everything read here is the kernel's ABI (<linux/fuse.h>, stable); no structure of libfuse is touched, so
 * libfuse's version does not matter. The rejected way was to copy and extend pyfuse3's fuse_lowlevel_ops:
 * that structure, and libfuse's init negotiation, differ from one libfuse to the next.
 *
 * Threads: receive and hook_read run inside pyfuse3's loop with the GIL held, and all state here belongs to that thread.
 */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#ifndef _FILE_OFFSET_BITS
#define _FILE_OFFSET_BITS 64
#endif
#define FUSE_USE_VERSION 32
#include <Python.h>
#include <structmember.h>

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse3/fuse_lowlevel.h>
#include <linux/fuse.h>
#include <stdbool.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#if FUSE_KERNEL_MINOR_VERSION < 36
#error "<linux/fuse.h> of Linux 5.17 or newer is needed (fuse_init_out.flags2)"
#endif

/* ---------------------------------------------------------------- facts of one request */

typedef struct {
    uint64_t unique, nodeid, fh, lock_owner, offset;
    uint32_t opcode, uid, gid, pid, size, flags, operation_flags, valid;
    bool has_fh, has_lock_owner;
} Facts;

static void set_fh(Facts *f, uint64_t fh) {
    f->fh = fh;
    f->has_fh = true;
}

static void set_lock_owner(Facts *f, uint64_t owner) {
    f->lock_owner = owner;
    f->has_lock_owner = true;
}

/* fuse_read_in and fuse_write_in have one layout and FUSE_READ_LOCKOWNER == FUSE_WRITE_LOCKOWNER. */
static void transfer_facts(Facts *f, const struct fuse_write_in *in) {
    set_fh(f, in->fh);
    f->offset = in->offset;
    f->size = in->size;
    f->operation_flags = in->write_flags;
    f->flags = in->flags;
    if (in->write_flags & FUSE_WRITE_LOCKOWNER)
        set_lock_owner(f, in->lock_owner);
}

static void release_facts(Facts *f, const struct fuse_release_in *in) {
    set_fh(f, in->fh);
    f->flags = in->flags;
    f->operation_flags = in->release_flags;
    /* fs/fuse/file.c: fuse_file_release() fills the owner in only for a file that was flock()ed. */
    if (in->release_flags & FUSE_RELEASE_FLOCK_UNLOCK)
        set_lock_owner(f, in->lock_owner);
}

static void setattr_facts(Facts *f, const struct fuse_setattr_in *in) {
    f->valid = in->valid;
    if (in->valid & FATTR_FH)
        set_fh(f, in->fh);
    if (in->valid & FATTR_LOCKOWNER)
        set_lock_owner(f, in->lock_owner);
}

static void getattr_facts(Facts *f, const struct fuse_getattr_in *in) {
    f->operation_flags = in->getattr_flags;
    if (in->getattr_flags & FUSE_GETATTR_FH)
        set_fh(f, in->fh);
}

static void parse_facts(Facts *f, const char *message, size_t size) {
    const struct fuse_in_header *header = (const void *)message;
    const void *body = message + sizeof *header;
    size_t body_size = size - sizeof *header;

    memset(f, 0, sizeof *f);
    f->unique = header->unique;
    f->nodeid = header->nodeid;
    f->opcode = header->opcode;
    f->uid = header->uid;
    f->gid = header->gid;
    f->pid = header->pid;

#define HAS(type) (body_size >= sizeof(type))
    switch (header->opcode) {
    case FUSE_READ:
    case FUSE_WRITE:
    case FUSE_READDIR:
    case FUSE_READDIRPLUS:
        if (HAS(struct fuse_write_in))
            transfer_facts(f, body);
        break;
    case FUSE_OPEN:
    case FUSE_OPENDIR:
        if (HAS(struct fuse_open_in)) {
            f->flags = ((const struct fuse_open_in *)body)->flags;
            f->operation_flags = ((const struct fuse_open_in *)body)->open_flags;
        }
        break;
    case FUSE_CREATE:
        if (HAS(struct fuse_create_in)) {
            f->flags = ((const struct fuse_create_in *)body)->flags;
            f->operation_flags = ((const struct fuse_create_in *)body)->open_flags;
        }
        break;
    case FUSE_FLUSH:
        if (HAS(struct fuse_flush_in)) {
            set_fh(f, ((const struct fuse_flush_in *)body)->fh);
            set_lock_owner(f, ((const struct fuse_flush_in *)body)->lock_owner);
        }
        break;
    case FUSE_RELEASE:
    case FUSE_RELEASEDIR:
        if (HAS(struct fuse_release_in))
            release_facts(f, body);
        break;
    case FUSE_FSYNC:
    case FUSE_FSYNCDIR:
        if (HAS(struct fuse_fsync_in)) {
            set_fh(f, ((const struct fuse_fsync_in *)body)->fh);
            f->operation_flags = ((const struct fuse_fsync_in *)body)->fsync_flags;
        }
        break;
    case FUSE_GETATTR:
        if (HAS(struct fuse_getattr_in))
            getattr_facts(f, body);
        break;
    case FUSE_SETATTR:
        if (HAS(struct fuse_setattr_in))
            setattr_facts(f, body);
        break;
    }
#undef HAS
}

/* ---------------------------------------------------------------- class Request */

typedef struct {
    PyObject_HEAD
    Facts facts;
} Request;

static PyTypeObject RequestType;

static PyObject *new_request(const Facts *facts) {
    Request *self = PyObject_New(Request, &RequestType);
    if (self)
        self->facts = *facts;
    return (PyObject *)self;
}

static PyObject *request_fh(Request *self, void *closure) {
    (void)closure;
    if (!self->facts.has_fh)
        Py_RETURN_NONE;
    return PyLong_FromUnsignedLongLong(self->facts.fh);
}

static PyObject *request_lock_owner(Request *self, void *closure) {
    (void)closure;
    if (!self->facts.has_lock_owner)
        Py_RETURN_NONE;
    return PyLong_FromUnsignedLongLong(self->facts.lock_owner);
}

static PyObject *request_is_write_back(Request *self, void *closure) {
    (void)closure;
    return PyBool_FromLong(self->facts.opcode == FUSE_WRITE && (self->facts.operation_flags & FUSE_WRITE_CACHE));
}

static PyObject *request_kill_suidgid(Request *self, void *closure) {
    const Facts *f = &self->facts;
    bool kill = false;
    (void)closure;
    switch (f->opcode) {
    case FUSE_WRITE:
        kill = f->operation_flags & FUSE_WRITE_KILL_SUIDGID;
        break;
    case FUSE_OPEN:
    case FUSE_CREATE:
        kill = f->operation_flags & FUSE_OPEN_KILL_SUIDGID;
        break;
    case FUSE_SETATTR:
        kill = f->valid & FATTR_KILL_SUIDGID;
        break;
    }
    return PyBool_FromLong(kill);
}

static PyObject *request_repr(Request *self) {
    const Facts *f = &self->facts;
    return PyUnicode_FromFormat("<Request opcode=%u unique=%llu nodeid=%llu pid=%u>", f->opcode,
                                (unsigned long long)f->unique, (unsigned long long)f->nodeid, f->pid);
}

#define FACT(name, type) {#name, type, offsetof(Request, facts.name), READONLY, NULL}
static PyMemberDef request_members[] = {
    FACT(unique, T_ULONGLONG), FACT(nodeid, T_ULONGLONG), FACT(offset, T_ULONGLONG),
    FACT(opcode, T_UINT),      FACT(uid, T_UINT),         FACT(gid, T_UINT),
    FACT(pid, T_UINT),         FACT(size, T_UINT),        FACT(flags, T_UINT),
    FACT(operation_flags, T_UINT), FACT(valid, T_UINT),   {NULL, 0, 0, 0, NULL},
};
#undef FACT

static PyGetSetDef request_getset[] = {
    {"fh", (getter)request_fh, NULL, NULL, NULL},
    {"lock_owner", (getter)request_lock_owner, NULL, NULL, NULL},
    {"is_write_back", (getter)request_is_write_back, NULL, NULL, NULL},
    {"kill_suidgid", (getter)request_kill_suidgid, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyTypeObject RequestType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "nfsfuse.fuse.binding._supplement.Request",
    .tp_basicsize = sizeof(Request),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .tp_members = request_members,
    .tp_getset = request_getset,
    .tp_repr = (reprfunc)request_repr,
};

/* ---------------------------------------------------------------- state: one mount per process, as in pyfuse3 */

static struct {
    bool armed;
    int device;              /* of the mounted session, -1 before */
    uint64_t taken;          /* bit n: messages of opcode n go to Python, not to libfuse */
    uint64_t quick;          /* bit n: Python is asked for an answer to opcode n before that */
    uint64_t wanted;         /* FUSE_INIT flags, flags2 in the upper half */
    uint64_t decided;        /* which of them are ours to decide; the others stay as libfuse has them */
    uint64_t required;       /* fail the mount if the kernel does not offer these */
    uint32_t max_readahead, max_write, max_background, congestion_threshold;
    PyObject *on_message, *on_init, *on_quick;
} options = {.device = -1};

static Facts current;
static bool current_valid;

/* The message that receive() has read for libfuse, *filled* bytes; 0 if there is none. */
static struct {
    char *buffer;
    size_t size, filled;
} inbox;

static struct {
    bool waiting, done;
    uint64_t unique;
    struct fuse_init_in offered;
    struct fuse_init_out proposed, granted;
    int error;
} init;

/* ---------------------------------------------------------------- requests */

static void reply_error(int device, uint64_t unique, int error) {
    struct fuse_out_header out = {.len = sizeof out, .error = -error, .unique = unique};
    if (write(device, &out, sizeof out) < 0 && errno != ENOENT)
        perror("nfsfuse: writing to the FUSE device");
}

/* Give a message to Python. on_message catches everything itself; should it fail all the same, the program
 * that waits for this request gets EIO rather than waiting for ever. */
static void hand_over(int device, const Facts *facts, const char *message, size_t size) {
    PyGILState_STATE gil = PyGILState_Ensure();
    size_t skip = sizeof(struct fuse_in_header);
    PyObject *request = new_request(facts);
    PyObject *body = PyBytes_FromStringAndSize(message + skip, (Py_ssize_t)(size - skip));
    PyObject *result = NULL;
    if (request && body)
        result = PyObject_CallFunctionObjArgs(options.on_message, request, body, NULL);
    if (!result) {
        PyErr_WriteUnraisable(options.on_message);
        if (facts->opcode != FUSE_INTERRUPT)
            reply_error(device, facts->unique, EIO);
    }
    Py_XDECREF(result);
    Py_XDECREF(body);
    Py_XDECREF(request);
    PyGILState_Release(gil);
}

/* An answer of Python's: the payload of a success, or an errno. */
static int reply_with(int device, uint64_t unique, PyObject *answer) {
    if (PyLong_Check(answer)) {
        long error = PyLong_AsLong(answer);
        if (error < 0 || error > 511) { /* fuse_dev_do_write takes no other */
            if (!PyErr_Occurred())
                PyErr_Format(PyExc_ValueError, "%ld is no errno", error);
            return -1;
        }
        reply_error(device, unique, (int)error);
        return 0;
    }
    Py_buffer payload;
    if (PyObject_GetBuffer(answer, &payload, PyBUF_SIMPLE) < 0)
        return -1;
    struct fuse_out_header out = {.len = (uint32_t)(sizeof out + (size_t)payload.len), .unique = unique};
    struct iovec parts[] = {{&out, sizeof out}, {payload.buf, (size_t)payload.len}};
    ssize_t written = writev(device, parts, 2);
    int error = errno;
    PyBuffer_Release(&payload);
    if (written < 0 && error != ENOENT) {
        errno = error;
        perror("nfsfuse: writing to the FUSE device");
        reply_error(device, unique, EIO);
    }
    return 0;
}

/* Ask Python for an answer that takes no waiting; whether it was given, or will be (LATER). The body is Python's
 * during the call only. Should on_quick fail the program gets EIO, as in hand_over. */
static bool answered_at_once(int device, const Facts *facts, char *message, size_t size) {
    PyGILState_STATE gil = PyGILState_Ensure();
    size_t skip = sizeof(struct fuse_in_header);
    PyObject *request = new_request(facts);
    PyObject *body = PyMemoryView_FromMemory(message + skip, (Py_ssize_t)(size - skip), PyBUF_READ);
    PyObject *answer = NULL, *released = NULL;
    bool answered = true;
    if (request && body)
        answer = PyObject_CallFunctionObjArgs(options.on_quick, request, body, NULL);
    if (answer && answer == Py_None)
        answered = false;
    else if (!answer || (answer != Py_Ellipsis && reply_with(device, facts->unique, answer) < 0)) {
        PyErr_WriteUnraisable(options.on_quick);
        reply_error(device, facts->unique, EIO);
    }
    if (body && !(released = PyObject_CallMethod(body, "release", NULL)))
        PyErr_WriteUnraisable(options.on_quick);
    Py_XDECREF(released);
    Py_XDECREF(answer);
    Py_XDECREF(body);
    Py_XDECREF(request);
    PyGILState_Release(gil);
    return answered;
}

/* Read one message. Its size if libfuse is to have it; 0 if it is dealt with (*handed* over, or answered at
 * once); -1 and errno. */
static ssize_t take_in(int fd, void *buffer, size_t size, bool *handed) {
    *handed = false;
    ssize_t got = read(fd, buffer, size);
    if (got < (ssize_t)sizeof(struct fuse_in_header))
        return got; /* libfuse reports it */

    Facts facts;
    parse_facts(&facts, buffer, (size_t)got);
    uint64_t bit = facts.opcode < 64 ? (uint64_t)1 << facts.opcode : 0;
    if (options.quick & bit && answered_at_once(fd, &facts, buffer, (size_t)got))
        return 0;
    if (options.taken & bit) {
        hand_over(fd, &facts, buffer, (size_t)got);
        *handed = true;
        return 0;
    }
    if (facts.opcode == FUSE_INIT && !init.done) {
        size_t body_size = (size_t)got - sizeof(struct fuse_in_header);
        memset(&init.offered, 0, sizeof init.offered);
        memcpy(&init.offered, (char *)buffer + sizeof(struct fuse_in_header),
               body_size < sizeof init.offered ? body_size : sizeof init.offered);
        init.unique = facts.unique;
        init.waiting = true;
    }
    current = facts;
    current_valid = true;
    return got;
}

static ssize_t hook_read(int fd, void *buffer, size_t size, void *userdata) {
    (void)userdata;
    if (inbox.filled) {
        size_t filled = inbox.filled;
        inbox.filled = 0;
        if (filled > size) {
            errno = EIO; /* cannot be: a message is no larger than a write that the kernel was granted */
            return -1;
        }
        memcpy(buffer, inbox.buffer, filled);
        return (ssize_t)filled;
    }
    bool handed;
    ssize_t got = take_in(fd, buffer, size, &handed);
    /* The device is non-blocking: a request may be withdrawn (its program killed) between poll and read, and a
     * blocking read would then stop the whole event loop, GIL and all. pyfuse3 goes on waiting after EINTR, but
     * dies of EAGAIN. */
    if (got == 0 || (got < 0 && errno == EAGAIN)) {
        errno = EINTR;
        return -1;
    }
    return got;
}

/* ---------------------------------------------------------------- replies */

static uint32_t at_most(uint32_t value, uint32_t limit) {
    return value < limit ? value : limit;
}

/* Decide the connection's parameters. Only ever lowers max_write: libfuse has sized its buffers by its own. */
static int decide_init(struct fuse_init_out *out) {
    const struct fuse_init_in *in = &init.offered;
    uint64_t offered = in->flags;
    if (in->flags & FUSE_INIT_EXT)
        offered |= (uint64_t)in->flags2 << 32;
    if (options.required & ~offered)
        return EPROTO;

    uint64_t flags = out->flags;
    if (out->flags & FUSE_INIT_EXT)
        flags |= (uint64_t)out->flags2 << 32;
    flags = ((flags & ~options.decided) | options.wanted) & offered;
    flags |= in->flags & FUSE_INIT_EXT;
    out->flags = (uint32_t)flags;
    out->flags2 = flags & FUSE_INIT_EXT ? (uint32_t)(flags >> 32) : 0;

    uint32_t page = (uint32_t)sysconf(_SC_PAGESIZE);
    out->max_write = at_most(options.max_write, out->max_write);
    out->max_pages = (uint16_t)at_most((out->max_write - 1) / page + 1, out->max_pages);
    out->max_readahead = at_most(options.max_readahead, in->max_readahead);
    out->max_background = (uint16_t)options.max_background;
    out->congestion_threshold = (uint16_t)options.congestion_threshold;
    out->time_gran = 1;
    return 0;
}

static void tell_init_done(void) {
    PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *result = PyObject_CallNoArgs(options.on_init);
    if (!result)
        PyErr_WriteUnraisable(options.on_init);
    Py_XDECREF(result);
    PyGILState_Release(gil);
}

static ssize_t write_init_reply(int fd, const struct fuse_out_header *header, const struct iovec *iov, int count) {
    struct {
        struct fuse_out_header header;
        struct fuse_init_out body;
    } reply = {.header = *header};
    size_t filled = 0;
    for (int i = 1; i < count; i++) {
        if (filled + iov[i].iov_len > sizeof reply.body) {
            errno = EMSGSIZE;
            return -1;
        }
        memcpy((char *)&reply.body + filled, iov[i].iov_base, iov[i].iov_len);
        filled += iov[i].iov_len;
    }
    init.proposed = reply.body;
    init.error = -header->error;
    if (!init.error)
        /* Linux 4.20 and newer speak 7.28 or newer and take the full structure, which has max_pages. */
        init.error = filled == sizeof reply.body ? decide_init(&reply.body) : EPROTO;
    if (init.error) {
        reply.header.error = -init.error;
        filled = 0;
    } else {
        init.granted = reply.body;
    }
    reply.header.len = (uint32_t)(sizeof reply.header + filled);
    ssize_t result = write(fd, &reply, reply.header.len);
    int saved = errno;
    init.waiting = false;
    init.done = true;
    tell_init_done();
    errno = saved;
    return result;
}

static ssize_t hook_writev(int fd, struct iovec *iov, int count, void *userdata) {
    (void)userdata;
    const struct fuse_out_header *header = iov[0].iov_base;
    if (init.waiting && iov[0].iov_len == sizeof *header && header->unique == init.unique)
        return write_init_reply(fd, header, iov, count);
    return writev(fd, iov, count);
}

/* ---------------------------------------------------------------- libfuse */

typedef int (*mount_function)(struct fuse_session *, const char *);

/* What pyfuse3 calls instead of libfuse's function of the same name. A mount that was not prepared by
 * supplement.py fails: without our hooks the kernel would grant locks locally. */
int fuse_session_mount(struct fuse_session *session, const char *mountpoint) {
    static const struct fuse_custom_io io = {.read = hook_read, .writev = hook_writev};
    mount_function real = (mount_function)dlvsym(RTLD_NEXT, "fuse_session_mount", "FUSE_3.0");
    if (!real)
        real = (mount_function)dlsym(RTLD_NEXT, "fuse_session_mount");
    if (!options.armed || !real) {
        fuse_log(FUSE_LOG_ERR, "nfsfuse: mounting must go through nfsfuse.fuse.binding.supplement.mount()\n");
        return -1;
    }
    int error = real(session, mountpoint);
    if (error)
        return error;
    int device = fuse_session_fd(session);
    int status = fcntl(device, F_GETFL);
    if (status < 0 || fcntl(device, F_SETFL, status | O_NONBLOCK) < 0 ||
        fuse_session_custom_io(session, &io, device) != 0) {
        fuse_log(FUSE_LOG_ERR, "nfsfuse: libfuse did not accept our input and output functions\n");
        fuse_session_unmount(session);
        return -1;
    }
    options.device = device;
    return 0;
}

/* ---------------------------------------------------------------- Python's side */

static PyObject *py_current_request(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    if (!current_valid) {
        PyErr_SetString(PyExc_LookupError, "no FUSE request is being dispatched");
        return NULL;
    }
    return new_request(&current);
}

#define QUICK_IN_A_ROW 8 /* messages answered before other tasks get a turn */

enum { WAIT, TURN, MESSAGE };

/* receive(): deal with what the device has. WAIT if there is nothing now, TURN if other tasks are to run before it
 * is asked again (always after a message was handed over: what interrupts it must not get there before it has
 * begun), MESSAGE if there is one for libfuse, or the end of the session, which that is to see itself. */
static PyObject *py_receive(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    bool handed = false;
    for (int count = 0; !inbox.filled && !handed && count < QUICK_IN_A_ROW; count++) {
        ssize_t got = take_in(options.device, inbox.buffer, inbox.size, &handed);
        if (got < 0 && errno == EAGAIN)
            return PyLong_FromLong(WAIT);
        if (got < 0 && errno != EINTR && errno != ENOENT) /* ENOENT: withdrawn while it was read */
            return PyLong_FromLong(MESSAGE);
        if (got > 0)
            inbox.filled = (size_t)got;
    }
    return PyLong_FromLong(inbox.filled ? MESSAGE : TURN);
}

static PyObject *py_arm(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"taken",         "quick",     "wanted",         "decided",
                            "required",      "max_readahead", "max_write",  "max_background",
                            "congestion_threshold", "on_message", "on_init", "on_quick", NULL};
    unsigned long long taken, quick, wanted, decided, required;
    unsigned int max_readahead, max_write, max_background, congestion_threshold;
    PyObject *on_message, *on_init, *on_quick;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "$KKKKKIIIIOOO", names, &taken, &quick, &wanted, &decided,
                                     &required, &max_readahead, &max_write, &max_background,
                                     &congestion_threshold, &on_message, &on_init, &on_quick))
        return NULL;
    /* As libfuse sizes its buffers: the largest write, and a page for the headers. The kernel wants room for
     * FUSE_MIN_READ_BUFFER bytes before it has sent FUSE_INIT. */
    size_t size = (size_t)max_write + (size_t)sysconf(_SC_PAGESIZE);
    if (size < FUSE_MIN_READ_BUFFER)
        size = FUSE_MIN_READ_BUFFER;
    char *buffer = PyMem_RawRealloc(inbox.buffer, size);
    if (!buffer)
        return PyErr_NoMemory();
    inbox.buffer = buffer;
    inbox.size = size;
    inbox.filled = 0;
    options.taken = taken;
    options.quick = quick;
    options.wanted = wanted;
    options.decided = decided;
    options.required = required;
    options.max_readahead = max_readahead;
    options.max_write = max_write;
    options.max_background = max_background;
    options.congestion_threshold = congestion_threshold;
    Py_XSETREF(options.on_message, Py_NewRef(on_message));
    Py_XSETREF(options.on_init, Py_NewRef(on_init));
    Py_XSETREF(options.on_quick, Py_NewRef(on_quick));
    options.device = -1;
    options.armed = true;
    memset(&init, 0, sizeof init);
    current_valid = false;
    Py_RETURN_NONE;
}

static PyObject *py_device(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    return PyLong_FromLong(options.device);
}

static PyObject *py_negotiation(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    if (!init.done)
        Py_RETURN_NONE;
    return Py_BuildValue("(iy#y#y#)", init.error, (char *)&init.offered, (Py_ssize_t)sizeof init.offered,
                         (char *)&init.proposed, (Py_ssize_t)sizeof init.proposed, (char *)&init.granted,
                         (Py_ssize_t)sizeof init.granted);
}

static PyMethodDef methods[] = {
    {"current_request", py_current_request, METH_NOARGS, NULL},
    {"arm", (PyCFunction)(void (*)(void))py_arm, METH_VARARGS | METH_KEYWORDS, NULL},
    {"device", py_device, METH_NOARGS, NULL},
    {"receive", py_receive, METH_NOARGS, NULL},
    {"negotiation", py_negotiation, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_supplement",
    .m_doc = "The kernel's raw FUSE messages; see nfsfuse.fuse.binding.supplement.",
    .m_size = -1,
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit__supplement(void) {
    if (PyType_Ready(&RequestType) < 0)
        return NULL;
    PyObject *module = PyModule_Create(&module_definition);
    if (module && (PyModule_AddObjectRef(module, "Request", (PyObject *)&RequestType) < 0 ||
                   PyModule_AddObjectRef(module, "LATER", Py_Ellipsis) < 0 ||
                   PyModule_AddIntMacro(module, WAIT) < 0 || PyModule_AddIntMacro(module, TURN) < 0 ||
                   PyModule_AddIntMacro(module, MESSAGE) < 0))
        Py_CLEAR(module);
    return module;
}

/*
 * _notifications: write(2) to the FUSE device, in threads that need nothing of Python.
 *
 * A notification blocks for as long as the kernel waits for the lock of a folio or a directory, so each has a
 * thread to itself. A Python thread would have to get Python's lock before it can write, and once more to say that
 * it has: behind the event loop, which is answering what the kernel asks meanwhile, on the way of a page from one
 * client to another. These threads say it with an eventfd, and before that with a byte: the next request of the
 * kernel may be read earlier than the eventfd.
 *
 * A page may have been read for a thread that has not used it yet (nfsfuse.machines.turns). A notification that takes
 * the page waits for that thread here, where a wait can be shorter than a millisecond and costs the event loop nothing.
 *
 * Threads: send, result and the life of a Notification belong to whoever has the GIL. From send until `finished` is
 * set the notification is a worker's, which holds a reference; result gives that back. One that nobody asks for
 * its result is never freed, as the worker may be about to write to it.
 */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define IDLE_SECONDS_MAX 10 /* then a thread ends */
#define STACK_SIZE (256 << 10)
#define LOOK_NANOSECONDS 30000 /* between two looks whether a thread has gone on: what it takes to wake one */
#define FAULT_NANOSECONDS 20000 /* on the processor: the rest of a fault and what comes after it, several times over */

/* What a thread has had of the processor. */
typedef struct {
    unsigned long long times, nanoseconds;
} Processor;

typedef struct Notification {
    PyObject_HEAD
    struct Notification *next;
    Py_buffer message, returned;
    int device, event, error, thread; /* 0: no thread is waited for */
    unsigned unreadable;              /* bytes that follow the message and cannot be read: nothing is at NULL */
    Processor before;
    double patience, seconds;
    bool finished, collected;
} Notification;

static struct {
    pthread_mutex_t lock;
    pthread_cond_t more;
    Notification *first, **last;
    unsigned queued, idle;
} work = {.lock = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER, .last = &work.first};

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* /proc/TID/schedstat is "time spent on the cpu (in nanoseconds)", as of the last tick or when it last gave a
 * processor up; "time spent waiting on a runqueue"; "# of timeslices run on this cpu"
 * (Documentation/scheduler/sched-stats.rst). Alone of what tells of a thread's running it takes no lock, and no
 * reference to the thread's memory, which could make us close the mappings of a program that ends (fs/proc/base.c,
 * proc_pid_schedstat). False if there is none, as the thread is over or in another pid namespace. */
static bool processor_of(int thread, Processor *it) {
    char path[64], text[80];
    snprintf(path, sizeof path, "/proc/%d/schedstat", thread);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return false;
    ssize_t length = read(file, text, sizeof text - 1);
    close(file);
    text[length < 0 ? 0 : length] = 0;
    return sscanf(text, "%llu %*u %llu", &it->nanoseconds, &it->times) == 2;
}

static void pause_shortly(void) {
    const struct timespec shortly = {.tv_nsec = LOOK_NANOSECONDS};
    nanosleep(&shortly, NULL);
}

/* Wait until the thread, which slept in a fault, has gone on, or until it has had its time. */
static void give_turn(const Notification *it) {
    Processor had;
    for (double end = now() + it->patience; now() < end; pause_shortly()) {
        if (!processor_of(it->thread, &had))
            return;
        if (had.times == it->before.times)
            continue; /* it has not been given a processor yet */
        if (had.nanoseconds - it->before.nanoseconds < FAULT_NANOSECONDS)
            pause_shortly(); /* it is at it, or was preempted at once: perhaps by us */
        return;
    }
}

static void carry_out(Notification *it) {
    int event = it->event;
    if (it->thread)
        give_turn(it);
    double begin = now();
    const struct iovec parts[] = {
        {.iov_base = it->message.buf, .iov_len = (size_t)it->message.len},
        {.iov_base = NULL, .iov_len = it->unreadable},
    };
    ssize_t written = writev(it->device, parts, it->unreadable ? 2 : 1);
    it->error = written < 0 ? errno : 0;
    it->seconds = now() - begin;
    if (it->returned.buf)
        __atomic_store_n((unsigned char *)it->returned.buf, 1, __ATOMIC_RELEASE);
    __atomic_store_n(&it->finished, true, __ATOMIC_RELEASE);
    /* It may be freed from here on. The counter of an eventfd that is read once for each write never overflows. */
    uint64_t one = 1;
    while (write(event, &one, sizeof one) < 0 && errno == EINTR)
        ;
}

static void *worker(void *unused) {
    (void)unused;
    prctl(PR_SET_TIMERSLACK, 1000); /* or a pause would take 50 us longer */
    pthread_mutex_lock(&work.lock);
    for (;;) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += IDLE_SECONDS_MAX;
        int waited = 0;
        work.idle++;
        while (!work.first && waited != ETIMEDOUT)
            waited = pthread_cond_timedwait(&work.more, &work.lock, &until);
        work.idle--;
        Notification *it = work.first;
        if (!it)
            break;
        work.first = it->next;
        if (!work.first)
            work.last = &work.first;
        work.queued--;
        pthread_mutex_unlock(&work.lock);
        carry_out(it);
        pthread_mutex_lock(&work.lock);
    }
    pthread_mutex_unlock(&work.lock);
    return NULL;
}

/* 0, or an errno. Signals are the business of the other threads. */
static int start_worker(void) {
    pthread_t thread;
    pthread_attr_t attributes;
    sigset_t all, before;
    int error = pthread_attr_init(&attributes);
    if (error)
        return error;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, STACK_SIZE);
    error = pthread_create(&thread, &attributes, worker, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return error;
}

/* 0, or an errno: then *it* is not a worker's. */
static int enqueue(Notification *it) {
    int error = 0;
    pthread_mutex_lock(&work.lock);
    if (work.queued >= work.idle)
        error = start_worker();
    if (!error) {
        it->next = NULL;
        *work.last = it;
        work.last = &it->next;
        work.queued++;
        pthread_cond_signal(&work.more);
    }
    pthread_mutex_unlock(&work.lock);
    return error;
}

static void notification_dealloc(Notification *self) {
    if (self->message.obj)
        PyBuffer_Release(&self->message);
    if (self->returned.obj)
        PyBuffer_Release(&self->returned);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyTypeObject NotificationType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "nfsfuse.fuse.notifications._notifications.Notification",
    .tp_basicsize = sizeof(Notification),
    .tp_dealloc = (destructor)notification_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
};

static PyObject *py_send(PyObject *module, PyObject *args) {
    int device, event;
    PyObject *message, *returned;
    int thread = 0;
    Processor before = {0, 0};
    unsigned unreadable = 0;
    double patience = 0;
    (void)module;
    if (!PyArg_ParseTuple(args, "iSOi|iKKdI", &device, &message, &returned, &event, &thread, &before.times,
                          &before.nanoseconds, &patience, &unreadable))
        return NULL;
    Notification *it = (Notification *)PyType_GenericAlloc(&NotificationType, 0); /* zeroed */
    if (!it)
        return NULL;
    it->device = device;
    it->event = event;
    it->thread = thread;
    it->before = before;
    it->patience = patience;
    it->unreadable = unreadable;
    if (PyObject_GetBuffer(message, &it->message, PyBUF_SIMPLE) < 0 ||
        (returned != Py_None && PyObject_GetBuffer(returned, &it->returned, PyBUF_WRITABLE) < 0)) {
        Py_DECREF(it);
        return NULL;
    }
    int error = enqueue((Notification *)Py_NewRef(it));
    if (error) {
        Py_DECREF(it);
        Py_DECREF(it);
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return (PyObject *)it;
}

static PyObject *py_result(PyObject *module, PyObject *args) {
    Notification *it;
    (void)module;
    if (!PyArg_ParseTuple(args, "O!", &NotificationType, &it))
        return NULL;
    if (!__atomic_load_n(&it->finished, __ATOMIC_ACQUIRE)) {
        PyErr_SetString(PyExc_RuntimeError, "write(2) has not returned");
        return NULL;
    }
    PyObject *result = Py_BuildValue("(id)", it->error, it->seconds);
    if (!it->collected) {
        it->collected = true;
        Py_DECREF(it); /* the worker's */
    }
    return result;
}

static PyObject *py_processor(PyObject *module, PyObject *args) {
    int thread;
    Processor had;
    (void)module;
    if (!PyArg_ParseTuple(args, "i", &thread))
        return NULL;
    if (!processor_of(thread, &had))
        Py_RETURN_NONE;
    return Py_BuildValue("(KK)", had.times, had.nanoseconds);
}

static PyMethodDef methods[] = {
    {"processor", py_processor, METH_VARARGS, NULL},
    {"send", py_send, METH_VARARGS, NULL},
    {"result", py_result, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_notifications",
    .m_doc = "Writes to the FUSE device in threads; see nfsfuse.fuse.notifications.notifier.",
    .m_size = -1,
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit__notifications(void) {
    if (PyType_Ready(&NotificationType) < 0)
        return NULL;
    PyObject *module = PyModule_Create(&module_definition);
    if (module && PyModule_AddObjectRef(module, "Notification", (PyObject *)&NotificationType) < 0)
        Py_CLEAR(module);
    return module;
}

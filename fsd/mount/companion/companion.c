/* fsd.mount.companion._companion: what pyfuse3 does not do, done beside it.
 *
 *   kernel --/dev/fuse--> libfuse --operations table--> pyfuse3 --> handlers
 *                |                     |
 *            io_read, io_writev    extended by us: getlk, setlk, flock, fallocate, lseek,
 *            (our custom io)       copy_file_range, ioctl --> Request --> dispatch (Python)
 *                |
 *            `instant` (Python): what can be answered without waiting for anybody
 *
 * How: this library defines fuse_session_new, fuse_session_mount and fuse_session_destroy. It is loaded into the global
 * symbol scope before pyfuse3, so that pyfuse3's calls land here; we extend the table of operations and the session
 * through libfuse's public API and pass the calls on (RTLD_NEXT). No struct of libfuse or pyfuse3 is looked into.
 *
 * Invariants:
 * - Without `configure`, or after it failed, every call is passed on unchanged.
 * - A request is answered exactly once: by its Request's reply, or with EIO when the Request dies unanswered. One whose
 *   session has gone is not touched any more (`generation`).
 * - The kernel's device is read by one thread, the one that runs pyfuse3's loop, which holds the GIL all the time; so
 *   the variables below need no lock. Only `notify` may be called by other threads.
 *
 * Python's stable ABI (3.11); libfuse 3.4 or later; kernel structures by their offsets in linux/fuse.h, which never change.
 */
#define PY_SSIZE_T_CLEAN
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030b0000
#endif
#include <Python.h>

#define FUSE_USE_VERSION 35
#include <fuse_lowlevel.h>

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

typedef unsigned long long ull;

/* Exported under libfuse's own name, whatever its header declares (macros and const differ between versions). */
#define INTERPOSE(name) __asm__(name) __attribute__((visibility("default")))

/* --- the kernel's structures, linux/fuse.h -------------------------------------------------------------------------- */

struct in_header { uint32_t len, opcode; uint64_t unique, nodeid; uint32_t uid, gid, pid, padding; };
struct out_header { uint32_t len; int32_t error; uint64_t unique; };
struct init_in { uint32_t major, minor, max_readahead, flags, flags2; };
struct init_out {
    uint32_t major, minor, max_readahead, flags;
    uint16_t max_background, congestion_threshold;
    uint32_t max_write, time_gran;
    uint16_t max_pages, map_alignment;
    uint32_t flags2;
};
enum {
    OP_SETATTR = 4, OP_OPEN = 14, OP_WRITE = 16, OP_RELEASE = 18, OP_FLUSH = 25, OP_INIT = 26, OP_CREATE = 35,
    OPCODES = 64,
    OP_FORGET = 2, OP_INTERRUPT = 36, OP_BATCH_FORGET = 42,
    CALLERS = 4096, CALLER_PROBES = 16, /* a request that finds no place cannot be given up by its caller's death */
    INIT_MAX = 256,                     /* bytes of an INIT request or its answer; today 104 and 80 */
    INIT_IN_MIN = 56, INIT_OUT_FLAGS2 = 36,
    INSTANT_MAX = 136 * 1024,           /* bytes of a request that may be answered instantly; the rest is worth a task */
    INSTANT_PATIENCE_US = 50,           /* how long the loop is held for the next request */
    INSTANT_TURN_US = 1000,             /* and for all of them until its other tasks run */
};
#define INIT_EXT (1u << 30)             /* flags2 holds the upper half */
#define RESENT (1ull << 63)             /* in `unique`: a predecessor had read this request already */

/* --- state ---------------------------------------------------------------------------------------------------------- */

static struct {                         /* what `configure` asked for */
    PyObject *dispatch;                 /* callable(name, Request, *args) */
    PyObject *on_init;                  /* callable(), when INIT was agreed on */
    PyObject *on_interrupt;             /* callable(unique, pid): a signal hit the caller of a request under way */
    int operations;                     /* mask of HAS_ */
    ull set_flags, clear_flags;         /* of the answer to INIT */
    unsigned max_write, max_readahead, max_background;  /* 0: libfuse's */
    PyObject *instant;                  /* callable(opcode, unique, inode, uid, gid, pid, body); see answered_instantly */
    ull instant_opcodes;                /* mask of those that it may be asked about */
} wanted;

enum { HAS_LOCKS = 1, HAS_FLOCK = 2, HAS_FALLOCATE = 4, HAS_LSEEK = 8, HAS_COPY = 16, HAS_IOCTL = 32 };

static struct fuse_session *session;
static unsigned long generation;        /* of the session */
static int abandoned;                   /* requests that are open are left to the next daemon */
static int mounted, hooked;             /* the session is mounted; its device goes through io_read and io_writev */
static void (*next_init)(void *, struct fuse_conn_info *);

static struct {                         /* INIT, as agreed on with the kernel */
    char request[INIT_MAX], reply[INIT_MAX];
    size_t request_size, reply_size;
    uint64_t unique;                    /* of the request that is being answered; 0: none */
    ull offered, agreed;                /* flags */
    int replay;                         /* 1: the next read yields `request`; 2: its answer goes nowhere */
} init;

static struct { ull unique, lock_owner; unsigned opcode, flags, uid, gid, resent; } current;    /* the request just read */
static struct { ull unique; unsigned pid; } callers[CALLERS];   /* of requests that are not answered yet; 0: free */
static ull counts[OPCODES];
static ull lost_races;                  /* reads that would have blocked the loop */
static ull instant_answers;

/* --- Request: one request of an extra operation, to be answered once ------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    fuse_req_t req;                     /* NULL once answered */
    unsigned long generation;
    ull unique;
    PyObject *interrupted;
} Request;

static PyTypeObject *request_type;

static int is_open(const Request *self) { return self->req && self->generation == generation && !abandoned; }

/* The libfuse request, which is ours no more from here on; libfuse frees it with the answer. */
static fuse_req_t take(Request *self)
{
    if (!is_open(self)) {
        PyErr_SetString(PyExc_RuntimeError, self->req ? "the session of this request has gone" : "the request was already answered");
        return NULL;
    }
    fuse_req_t req = self->req;
    self->req = NULL;
    Py_CLEAR(self->interrupted);
    return req;
}

static PyObject *result(int code)
{
    if (code == 0 || code == -ENOENT)   /* ENOENT: the kernel has given this request up */
        Py_RETURN_NONE;
    errno = -code;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *reply_error(Request *self, PyObject *args)
{
    int number;
    fuse_req_t req;
    if (!PyArg_ParseTuple(args, "i", &number) || !(req = take(self)))
        return NULL;
    return result(fuse_reply_err(req, number));
}

static PyObject *reply_lock(Request *self, PyObject *args)
{
    struct flock lock = {.l_whence = SEEK_SET};
    int type, pid;
    long long start, length;
    fuse_req_t req;
    if (!PyArg_ParseTuple(args, "iLLi", &type, &start, &length, &pid) || !(req = take(self)))
        return NULL;
    lock.l_type = (short)type;
    lock.l_start = start;
    lock.l_len = length;
    lock.l_pid = pid;
    return result(fuse_reply_lock(req, &lock));
}

static PyObject *reply_offset(Request *self, PyObject *args)
{
    long long offset;
    fuse_req_t req;
    if (!PyArg_ParseTuple(args, "L", &offset) || !(req = take(self)))
        return NULL;
    return result(fuse_reply_lseek(req, offset));
}

static PyObject *reply_count(Request *self, PyObject *args)
{
    Py_ssize_t count;
    fuse_req_t req;
    if (!PyArg_ParseTuple(args, "n", &count) || !(req = take(self)))
        return NULL;
    return result(fuse_reply_write(req, (size_t)count));
}

static PyObject *reply_ioctl(Request *self, PyObject *args)
{
    int value;
    const char *data;
    Py_ssize_t size;
    fuse_req_t req;
    if (!PyArg_ParseTuple(args, "iy#", &value, &data, &size) || !(req = take(self)))
        return NULL;
    return result(fuse_reply_ioctl(req, value, data, (size_t)size));
}

static PyObject *request_context(Request *self, PyObject *unused)
{
    if (!is_open(self))
        return Py_BuildValue("IIiI", 0, 0, 0, 0);
    const struct fuse_ctx *context = fuse_req_ctx(self->req);
    return Py_BuildValue("IIiI", context->uid, context->gid, context->pid, context->umask);
}

/* libfuse calls this with the request's lock held: the callback must not answer, only take note. */
static void on_fuse_interrupt(fuse_req_t req, void *data)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    Request *self = data;
    if (self->interrupted) {
        PyObject *done = PyObject_CallNoArgs(self->interrupted);
        if (!done)
            PyErr_WriteUnraisable(self->interrupted);
        Py_XDECREF(done);
    }
    PyGILState_Release(gil);
}

static PyObject *on_interrupt(Request *self, PyObject *callback)
{
    if (is_open(self)) {
        Py_XDECREF(self->interrupted);
        self->interrupted = Py_NewRef(callback);
        fuse_req_interrupt_func(self->req, on_fuse_interrupt, self);  /* calls at once if it was interrupted before */
    }
    Py_RETURN_NONE;
}

static PyObject *request_unique(Request *self, void *closure) { return PyLong_FromUnsignedLongLong(self->unique & ~RESENT); }
static PyObject *request_call(Request *self, void *closure) { return PyLong_FromUnsignedLongLong(self->unique); }
static PyObject *request_answered(Request *self, void *closure) { return PyBool_FromLong(!is_open(self)); }

static void request_dealloc(Request *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    if (is_open(self))
        fuse_reply_err(self->req, EIO); /* never leave a caller hanging */
    Py_CLEAR(self->interrupted);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyMethodDef request_methods[] = {
    {"reply_error", (PyCFunction)reply_error, METH_VARARGS, "reply_error(errno): 0 is success without a result"},
    {"reply_lock", (PyCFunction)reply_lock, METH_VARARGS, "reply_lock(type, start, length, pid): of getlk"},
    {"reply_offset", (PyCFunction)reply_offset, METH_VARARGS, "reply_offset(offset): of lseek"},
    {"reply_count", (PyCFunction)reply_count, METH_VARARGS, "reply_count(bytes): of copy_file_range"},
    {"reply_ioctl", (PyCFunction)reply_ioctl, METH_VARARGS, "reply_ioctl(result, data)"},
    {"context", (PyCFunction)request_context, METH_NOARGS, "context() -> (uid, gid, pid, umask) of the caller"},
    {"on_interrupt", (PyCFunction)on_interrupt, METH_O, "on_interrupt(callback): when a signal hits the caller; it must not reply"},
    {0}};
static PyGetSetDef request_properties[] = {
    {"unique", (getter)request_unique, NULL, "the kernel's number of this request", NULL},
    {"call", (getter)request_call, NULL, "`unique`, with the highest bit set if it was sent again", NULL},
    {"answered", (getter)request_answered, NULL, "whether it was answered, or its session has gone", NULL},
    {0}};
static PyType_Slot request_slots[] = {
    {Py_tp_dealloc, request_dealloc}, {Py_tp_methods, request_methods}, {Py_tp_getset, request_properties}, {0, NULL}};
static PyType_Spec request_spec = {
    "fsd.mount.companion._companion.Request", sizeof(Request), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, request_slots};

/* --- the extra operations ------------------------------------------------------------------------------------------- */

static void dispatch(fuse_req_t req, const char *name, const char *format, ...)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *arguments = NULL, *done = NULL;
    Request *self = PyObject_New(Request, request_type);
    if (!self) {
        fuse_reply_err(req, ENOMEM);
        PyErr_WriteUnraisable(NULL);
        PyGILState_Release(gil);
        return;
    }
    self->req = req;
    self->generation = generation;
    self->unique = current.unique | (current.resent ? RESENT : 0);
    self->interrupted = NULL;
    va_list values;
    va_start(values, format);
    arguments = Py_VaBuildValue(format, values);
    va_end(values);
    if (arguments)
        done = PyObject_CallFunction(wanted.dispatch, "sOO", name, (PyObject *)self, arguments);
    if (!done)
        PyErr_WriteUnraisable(wanted.dispatch);
    Py_XDECREF(done);
    Py_XDECREF(arguments);
    Py_DECREF((PyObject *)self);        /* the last reference if dispatch failed: answers EIO */
    PyGILState_Release(gil);
}

static void x_getlk(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, struct flock *lock)
{
    dispatch(req, "getlk", "(KKKiLLi)", (ull)ino, (ull)fi->fh, (ull)fi->lock_owner, (int)lock->l_type,
             (long long)lock->l_start, (long long)lock->l_len, (int)lock->l_pid);
}

static void x_setlk(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, struct flock *lock, int sleep)
{
    dispatch(req, "setlk", "(KKKiLLii)", (ull)ino, (ull)fi->fh, (ull)fi->lock_owner, (int)lock->l_type,
             (long long)lock->l_start, (long long)lock->l_len, (int)lock->l_pid, sleep);
}

static void x_flock(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, int operation)
{
    dispatch(req, "flock", "(KKKi)", (ull)ino, (ull)fi->fh, (ull)fi->lock_owner, operation);
}

static void x_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t length, struct fuse_file_info *fi)
{
    dispatch(req, "fallocate", "(KKiLL)", (ull)ino, (ull)fi->fh, mode, (long long)offset, (long long)length);
}

static void x_lseek(fuse_req_t req, fuse_ino_t ino, off_t offset, int whence, struct fuse_file_info *fi)
{
    dispatch(req, "lseek", "(KKLi)", (ull)ino, (ull)fi->fh, (long long)offset, whence);
}

static void x_copy_file_range(fuse_req_t req, fuse_ino_t from, off_t from_offset, struct fuse_file_info *from_fi,
                              fuse_ino_t to, off_t to_offset, struct fuse_file_info *to_fi, size_t length, int flags)
{
    dispatch(req, "copy_file_range", "(KKLKKLni)", (ull)from, (ull)from_fi->fh, (long long)from_offset, (ull)to,
             (ull)to_fi->fh, (long long)to_offset, (Py_ssize_t)length, flags);
}

static void x_ioctl(fuse_req_t req, fuse_ino_t ino, unsigned int command, void *argument, struct fuse_file_info *fi,
                    unsigned flags, const void *data, size_t size, size_t out_size)
{
    if (flags & FUSE_IOCTL_UNRESTRICTED) {  /* only CUSE: the sizes are not in the command */
        fuse_reply_err(req, ENOTTY);
        return;
    }
    dispatch(req, "ioctl", "(KKIKIy#n)", (ull)ino, (ull)fi->fh, command, (ull)(uintptr_t)argument, flags,
             data ? data : "", (Py_ssize_t)(data ? size : 0), (Py_ssize_t)out_size);
}

static void x_init(void *userdata, struct fuse_conn_info *connection)
{
    if (next_init)
        next_init(userdata, connection);
    /* Spliced requests would not pass io_read; pyfuse3 copies the bytes all the same. */
    connection->want &= ~(unsigned)(FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE);
    unsigned max_write = wanted.max_write, max_background = wanted.max_background;
    if (init.replay) {                  /* the kernel goes by what our predecessor said */
        struct init_out before;
        memcpy(&before, init.reply + sizeof(struct out_header), sizeof before);
        max_write = before.max_write;
        max_background = before.max_background;
    }
    if (max_write)
        connection->max_write = max_write;
    if (wanted.max_readahead)
        connection->max_readahead = wanted.max_readahead;
    if (max_background) {
        connection->max_background = max_background;
        connection->congestion_threshold = max_background * 3 / 4;
    }
}

/* The table of operations, extended; `size` grows to what we set. */
static const struct fuse_lowlevel_ops *extended(const struct fuse_lowlevel_ops *operations, size_t *size)
{
    static struct fuse_lowlevel_ops table;
    const size_t end = offsetof(struct fuse_lowlevel_ops, lseek) + sizeof table.lseek;
    memset(&table, 0, sizeof table);
    memcpy(&table, operations, *size < sizeof table ? *size : sizeof table);
    next_init = table.init;
    table.init = x_init;
    if (wanted.operations & HAS_LOCKS) {
        table.getlk = x_getlk;
        table.setlk = x_setlk;
    }
    if (wanted.operations & HAS_FLOCK)
        table.flock = x_flock;
    if (wanted.operations & HAS_FALLOCATE)
        table.fallocate = x_fallocate;
    if (wanted.operations & HAS_LSEEK)
        table.lseek = x_lseek;
    if (wanted.operations & HAS_COPY)
        table.copy_file_range = x_copy_file_range;
    if (wanted.operations & HAS_IOCTL)
        table.ioctl = x_ioctl;
    if (*size < end)
        *size = end;
    return &table;
}

/* --- the device ----------------------------------------------------------------------------------------------------- */

static uint32_t u32_at(const char *body, size_t offset) { uint32_t value; memcpy(&value, body + offset, 4); return value; }
static ull u64_at(const char *body, size_t offset) { uint64_t value; memcpy(&value, body + offset, 8); return value; }

static void note_init(const char *message, size_t size)
{
    struct init_in in = {0};
    size_t body = size - sizeof(struct in_header);
    memcpy(&in, message + sizeof(struct in_header), body < sizeof in ? body : sizeof in);
    init.offered = in.flags;
    if ((in.flags & INIT_EXT) && body >= sizeof in)
        init.offered |= (ull)in.flags2 << 32;
    init.unique = ((const struct in_header *)message)->unique;
    if (size <= sizeof init.request && init.replay != 2) {
        memcpy(init.request, message, size);
        init.request_size = size;
    }
}

/* Where `unique` is among the callers, or has a free place to be put (`to_add`); -1: nowhere. */
static int caller_at(ull unique, int to_add)
{
    for (unsigned probe = 0; probe < CALLER_PROBES; probe++) {
        unsigned at = (unsigned)(unique / 2 + probe) % CALLERS;
        if (callers[at].unique == (to_add ? 0 : unique))
            return (int)at;
    }
    return -1;
}

static void caller_waits(ull unique, unsigned pid)
{
    int at = caller_at(unique, 1);
    if (at >= 0) {
        callers[at].unique = unique;
        callers[at].pid = pid;
    }
}

static void caller_is_answered(ull unique)
{
    int at = unique ? caller_at(unique, 0) : -1;
    if (at >= 0)
        callers[at].unique = 0;
}

static void call_interrupted(ull unique)
{
    int at = caller_at(unique, 0);
    if (at < 0)
        at = caller_at(unique | RESENT, 0);
    if (!wanted.on_interrupt || at < 0)
        return;
    PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *done = PyObject_CallFunction(wanted.on_interrupt, "KI", callers[at].unique, callers[at].pid);
    if (!done)
        PyErr_WriteUnraisable(wanted.on_interrupt);
    Py_XDECREF(done);
    PyGILState_Release(gil);
}

/* Remember what libfuse and pyfuse3 drop. */
static void note(const char *message, size_t size)
{
    if (size < sizeof(struct in_header))
        return;
    struct in_header header;
    memcpy(&header, message, sizeof header);
    const char *body = message + sizeof header;
    size -= sizeof header;
    if (header.opcode < OPCODES)
        counts[header.opcode]++;
    if (header.opcode == OP_INTERRUPT) {
        if (size >= 8)
            call_interrupted(u64_at(body, 0));
    } else if (header.opcode != OP_FORGET && header.opcode != OP_BATCH_FORGET)
        caller_waits(header.unique, header.pid);
    current.unique = header.unique & ~RESENT;
    current.resent = (header.unique & RESENT) != 0;
    current.opcode = header.opcode;
    current.uid = header.uid;
    current.gid = header.gid;
    current.flags = 0;
    current.lock_owner = 0;
    switch (header.opcode) {
    case OP_INIT:
        if (size + sizeof header >= INIT_IN_MIN)
            note_init(message, size + sizeof header);
        break;
    case OP_SETATTR:                    /* valid */
    case OP_FLUSH:
        if (header.opcode == OP_SETATTR && size >= 4)
            current.flags = u32_at(body, 0);
        if (header.opcode == OP_FLUSH && size >= 24)
            current.lock_owner = u64_at(body, 16);
        break;
    case OP_OPEN:                       /* open_flags */
        if (size >= 8)
            current.flags = u32_at(body, 4);
        break;
    case OP_CREATE:
        if (size >= 16)
            current.flags = u32_at(body, 12);
        break;
    case OP_WRITE:                      /* write_flags */
        if (size >= 32) {
            current.flags = u32_at(body, 20);
            current.lock_owner = u64_at(body, 24);
        }
        break;
    case OP_RELEASE:                    /* release_flags */
        if (size >= 24) {
            current.flags = u32_at(body, 12);
            current.lock_owner = u64_at(body, 16);
        }
        break;
    }
}

/* Requests that need nobody else are answered here, before libfuse, pyfuse3 and its event loop have heard of them: `instant`
 * says the answer (bytes), an errno (int), or None: the request goes the ordinary way. It runs in the loop's thread between
 * two steps of its tasks, so it may look at and change whatever they share. A resent request may have been carried out
 * already: it always goes the ordinary way. */
static int answered_instantly(int fd, const char *message, size_t size)
{
    struct in_header header;
    if (!wanted.instant || size < sizeof header || size > INSTANT_MAX)
        return 0;
    memcpy(&header, message, sizeof header);
    if (header.opcode >= OPCODES || !(wanted.instant_opcodes >> header.opcode & 1) || (header.unique & RESENT))
        return 0;
    struct out_header out = {sizeof out, -EIO, header.unique};
    struct iovec parts[2] = {{&out, sizeof out}, {NULL, 0}};
    char *bytes;
    Py_ssize_t length;
    PyObject *answer = PyObject_CallFunction(wanted.instant, "IKKIIIy#", header.opcode, (ull)header.unique, (ull)header.nodeid, header.uid, header.gid,
                                             header.pid, message + sizeof header, (Py_ssize_t)(size - sizeof header));
    if (answer == Py_None) {
        Py_DECREF(answer);
        return 0;
    }
    if (answer && PyBytes_Check(answer) && PyBytes_AsStringAndSize(answer, &bytes, &length) == 0) {
        out.error = 0;
        out.len += (uint32_t)length;
        parts[1].iov_base = bytes;
        parts[1].iov_len = (size_t)length;
    } else if (answer && PyLong_Check(answer))
        out.error = -(int32_t)PyLong_AsLong(answer);
    if (PyErr_Occurred())               /* a bug; what it did already cannot be done again: EIO */
        PyErr_WriteUnraisable(wanted.instant);
    while (writev(fd, parts, parts[1].iov_len ? 2 : 1) < 0 && errno == EINTR)
        ;                               /* ENOENT: the caller was killed meanwhile */
    caller_is_answered(header.unique);
    Py_XDECREF(answer);
    instant_answers++;
    return 1;
}

static long long microseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000ll + now.tv_nsec / 1000;
}

/* Whoever was just answered often has the next request ready before the event loop has gone around once. */
static int readable_soon(int fd)
{
    struct pollfd device = {fd, POLLIN, 0};
    struct timespec patience = {0, INSTANT_PATIENCE_US * 1000};
    int ready;
    Py_BEGIN_ALLOW_THREADS
    ready = ppoll(&device, 1, &patience, NULL);
    Py_END_ALLOW_THREADS
    return ready > 0;
}

static ssize_t io_read(int fd, void *buffer, size_t size, void *userdata)
{
    ssize_t got;
    if (init.replay == 1 && size >= init.request_size) {
        memcpy(buffer, init.request, init.request_size);
        init.replay = 2;
        note(buffer, init.request_size);
        return (ssize_t)init.request_size;
    }
    long long until = 0;
    while ((got = read(fd, buffer, size)) >= 0) {
        note(buffer, (size_t)got);
        if (!answered_instantly(fd, buffer, (size_t)got))
            return got;
        long long now = microseconds();
        if (!until)
            until = now + INSTANT_TURN_US;
        if (now >= until || !readable_soon(fd)) {
            errno = EINTR;              /* the other tasks' turn */
            return -1;
        }
    }
    /* Readable a moment ago, but the caller was killed in between (or another worker was faster). A blocking read would
     * freeze the event loop here until the next request. pyfuse3 goes on after EINTR, not after EAGAIN. */
    if (errno == EAGAIN) {
        lost_races += !until;
        errno = EINTR;
    }
    return got;
}

static void call_on_init(void)
{
    if (!wanted.on_init)
        return;
    PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *done = PyObject_CallNoArgs(wanted.on_init);
    if (!done)
        PyErr_WriteUnraisable(wanted.on_init);
    Py_XDECREF(done);
    PyGILState_Release(gil);
}

static ull flags_of(const char *body, size_t size)
{
    struct init_out out = {0};
    memcpy(&out, body, size < sizeof out ? size : sizeof out);
    return out.flags | ((out.flags & INIT_EXT) ? (ull)out.flags2 << 32 : 0);
}

/* The answer to INIT, with our flags; 1 if it must not be sent. */
static int answer_init(struct iovec *header, struct iovec *body)
{
    char *out = body->iov_base;
    int is_replay = init.replay == 2;
    init.unique = 0;
    if (is_replay) {
        init.replay = 0;
        init.agreed = flags_of(init.reply + sizeof(struct out_header), init.reply_size - sizeof(struct out_header));
    } else {
        int has_upper = body->iov_len >= INIT_OUT_FLAGS2 && (init.offered & INIT_EXT);
        ull flags = (flags_of(out, body->iov_len) | (wanted.set_flags & init.offered)) & ~wanted.clear_flags;
        uint32_t lower, upper = has_upper ? (uint32_t)(flags >> 32) : 0;
        flags = (uint32_t)flags | ((ull)upper << 32);
        if (upper)
            flags |= INIT_EXT;
        lower = (uint32_t)flags;
        memcpy(out + offsetof(struct init_out, flags), &lower, 4);
        if (has_upper)
            memcpy(out + offsetof(struct init_out, flags2), &upper, 4);
        init.agreed = flags;
        if (header->iov_len + body->iov_len <= sizeof init.reply) {
            memcpy(init.reply, header->iov_base, header->iov_len);
            memcpy(init.reply + header->iov_len, body->iov_base, body->iov_len);
            init.reply_size = header->iov_len + body->iov_len;
        }
    }
    return is_replay;
}

static ssize_t io_writev(int fd, struct iovec *parts, int count, void *userdata)
{
    int answers = 0;                    /* and does not notify */
    if (count && parts[0].iov_len >= sizeof(struct out_header)) {
        struct out_header header;
        memcpy(&header, parts[0].iov_base, sizeof header);
        caller_is_answered(header.unique);
        answers = header.unique != 0;
    }
    if (init.unique && count == 2 && parts[0].iov_len == sizeof(struct out_header) && parts[1].iov_len >= 24) {
        struct out_header header;
        memcpy(&header, parts[0].iov_base, sizeof header);
        if (header.unique == init.unique && header.error == 0) {
            int is_replay = answer_init(&parts[0], &parts[1]);
            ssize_t sent = is_replay ? (ssize_t)(parts[0].iov_len + parts[1].iov_len) : writev(fd, parts, count);
            if (sent >= 0)
                call_on_init();
            return sent;
        }
    }
    ssize_t sent = writev(fd, parts, count);
    if (sent < 0 && errno == ENOENT && answers) {  /* the request was given up: nobody wants this answer, and it is no error */
        sent = 0;
        for (int part = 0; part < count; part++)
            sent += (ssize_t)parts[part].iov_len;
    }
    return sent;
}

/* --- what pyfuse3 calls --------------------------------------------------------------------------------------------- */

static void *next(const char *name) { return dlsym(RTLD_NEXT, name); }

static void started(struct fuse_session *new_session)
{
    session = new_session;
    mounted = hooked = 0;
}

struct fuse_session *our_session_new(struct fuse_args *, const struct fuse_lowlevel_ops *, size_t, void *)
    INTERPOSE("fuse_session_new");
struct fuse_session *our_session_new(struct fuse_args *args, const struct fuse_lowlevel_ops *operations, size_t size, void *userdata)
{
    __typeof__(our_session_new) *call = next("fuse_session_new");
    if (!call)
        return NULL;
    if (wanted.dispatch)
        operations = extended(operations, &size);
    started(call(args, operations, size, userdata));
    return session;
}

/* libfuse 3.17 and later, for programs that were compiled against it */
struct fuse_session *our_session_new_versioned(struct fuse_args *, const struct fuse_lowlevel_ops *, size_t, const void *, void *)
    INTERPOSE("fuse_session_new_versioned");
struct fuse_session *our_session_new_versioned(struct fuse_args *args, const struct fuse_lowlevel_ops *operations, size_t size,
                                               const void *version, void *userdata)
{
    __typeof__(our_session_new_versioned) *call = next("fuse_session_new_versioned");
    if (!call)
        return NULL;
    if (wanted.dispatch)
        operations = extended(operations, &size);
    started(call(args, operations, size, version, userdata));
    return session;
}

static int hook(struct fuse_session *se, int fd)
{
    static const struct fuse_custom_io io = {.writev = io_writev, .read = io_read};
    int (*sized)(struct fuse_session *, const struct fuse_custom_io *, size_t, int) = next("fuse_session_custom_io_317");
    if (sized)
        return sized(se, &io, sizeof io, fd);
    int (*plain)(struct fuse_session *, const struct fuse_custom_io *, int) = next("fuse_session_custom_io");
    return plain ? plain(se, &io, fd) : -ENOSYS;
}

int our_session_mount(struct fuse_session *, const char *) INTERPOSE("fuse_session_mount");
int our_session_mount(struct fuse_session *se, const char *mountpoint)
{
    __typeof__(our_session_mount) *call = next("fuse_session_mount");
    int code = call ? call(se, mountpoint) : -1;
    if (code || se != session || !wanted.dispatch)
        return code;
    int fd = fuse_session_fd(se);
    mounted = 1;
    /* Non-blocking only behind our io_read: pyfuse3 alone would end at the first EAGAIN. */
    if (hook(se, fd) == 0) {
        int flags = fcntl(fd, F_GETFL);
        hooked = flags >= 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0;
    }
    if (!hooked && init.replay)         /* nobody would replay INIT: the mount would stay deaf */
        return -1;
    return 0;
}

void our_session_destroy(struct fuse_session *) INTERPOSE("fuse_session_destroy");
void our_session_destroy(struct fuse_session *se)
{
    __typeof__(our_session_destroy) *call = next("fuse_session_destroy");
    if (se == session) {
        session = NULL;
        mounted = hooked = 0;
        generation++;
    }
    if (call)
        call(se);
}

/* --- the module ----------------------------------------------------------------------------------------------------- */

static PyObject *configure(PyObject *module, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"dispatch", "operations", "set_flags", "clear_flags", "max_write", "max_readahead", "max_background", "on_init",
                            "instant", "instant_opcodes", NULL};
    PyObject *dispatcher, *on_init_callback = Py_None, *instant = Py_None;
    int operations;
    ull set_flags, clear_flags, instant_opcodes = 0;
    unsigned max_write = 0, max_readahead = 0, max_background = 0;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OiKK|IIIOOK", names, &dispatcher, &operations, &set_flags, &clear_flags,
                                     &max_write, &max_readahead, &max_background, &on_init_callback, &instant, &instant_opcodes))
        return NULL;
    if (mounted) {
        PyErr_SetString(PyExc_RuntimeError, "a session is mounted already");
        return NULL;
    }
    Py_XDECREF(wanted.dispatch);
    Py_XDECREF(wanted.on_init);
    wanted.dispatch = Py_NewRef(dispatcher);
    wanted.on_init = on_init_callback == Py_None ? NULL : Py_NewRef(on_init_callback);
    Py_XDECREF(wanted.instant);
    wanted.instant = instant == Py_None ? NULL : Py_NewRef(instant);
    wanted.instant_opcodes = instant_opcodes;
    wanted.operations = operations;
    wanted.set_flags = set_flags;
    wanted.clear_flags = clear_flags;
    wanted.max_write = max_write;
    wanted.max_readahead = max_readahead;
    wanted.max_background = max_background;
    Py_RETURN_NONE;
}

static PyObject *current_request(PyObject *module, PyObject *unused)
{
    return Py_BuildValue("KIIKIIO", current.unique, current.opcode, current.flags, current.lock_owner, current.uid, current.gid,
                         current.resent ? Py_True : Py_False);
}

static PyObject *info(PyObject *module, PyObject *unused)
{
    struct init_out out = {0};
    if (init.reply_size >= sizeof(struct out_header) + 24)
        memcpy(&out, init.reply + sizeof(struct out_header),
               init.reply_size - sizeof(struct out_header) < sizeof out ? init.reply_size - sizeof(struct out_header) : sizeof out);
    return Py_BuildValue("OOisKKIIIKK", mounted ? Py_True : Py_False, hooked ? Py_True : Py_False, mounted ? fuse_session_fd(session) : -1,
                         fuse_pkgversion(), init.offered, init.agreed, (unsigned)out.max_write, (unsigned)out.max_readahead,
                         (unsigned)out.max_background, lost_races, instant_answers);
}

static PyObject *request_counts(PyObject *module, PyObject *unused)
{
    PyObject *found = PyDict_New();
    for (int opcode = 0; found && opcode < OPCODES; opcode++) {
        if (!counts[opcode])
            continue;
        PyObject *key = PyLong_FromLong(opcode), *value = PyLong_FromUnsignedLongLong(counts[opcode]);
        if (!key || !value || PyDict_SetItem(found, key, value))
            Py_CLEAR(found);
        Py_XDECREF(key);
        Py_XDECREF(value);
    }
    return found;
}

static PyObject *init_exchange(PyObject *module, PyObject *unused)
{
    return Py_BuildValue("y#y#", init.request, (Py_ssize_t)init.request_size, init.reply, (Py_ssize_t)init.reply_size);
}

static PyObject *replay_init(PyObject *module, PyObject *args)
{
    const char *request, *reply;
    Py_ssize_t request_size, reply_size;
    if (!PyArg_ParseTuple(args, "y#y#", &request, &request_size, &reply, &reply_size))
        return NULL;
    if (mounted) {
        PyErr_SetString(PyExc_RuntimeError, "a session is mounted already");
        return NULL;
    }
    if (request_size < INIT_IN_MIN || request_size > INIT_MAX || u32_at(request, 4) != OP_INIT ||
        reply_size < (Py_ssize_t)(sizeof(struct out_header) + sizeof(struct init_out)) || reply_size > INIT_MAX) {
        PyErr_SetString(PyExc_ValueError, "not an INIT request with its answer");
        return NULL;
    }
    memcpy(init.request, request, (size_t)request_size);
    memcpy(init.reply, reply, (size_t)reply_size);
    init.request_size = (size_t)request_size;
    init.reply_size = (size_t)reply_size;
    init.replay = 1;
    Py_RETURN_NONE;
}

static PyObject *notify(PyObject *module, PyObject *args)
{
    int code;
    const char *payload;
    Py_ssize_t size;
    if (!PyArg_ParseTuple(args, "iy#", &code, &payload, &size))
        return NULL;
    if (!mounted) {
        PyErr_SetString(PyExc_RuntimeError, "no session is mounted");
        return NULL;
    }
    struct out_header header = {(uint32_t)(sizeof header + (size_t)size), code, 0};
    struct iovec parts[2] = {{&header, sizeof header}, {(void *)payload, (size_t)size}};
    int fd = fuse_session_fd(session);
    ssize_t sent;
    Py_BEGIN_ALLOW_THREADS
    sent = writev(fd, parts, size ? 2 : 1);
    Py_END_ALLOW_THREADS
    if (sent < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyObject *current_call(PyObject *module, PyObject *unused)
{
    return PyLong_FromUnsignedLongLong(current.unique | (current.resent ? RESENT : 0));
}

static PyObject *on_interrupted(PyObject *module, PyObject *callback)
{
    Py_XDECREF(wanted.on_interrupt);
    wanted.on_interrupt = Py_NewRef(callback);
    Py_RETURN_NONE;
}

static PyObject *is_waiting(PyObject *module, PyObject *args)
{
    ull unique;
    if (!PyArg_ParseTuple(args, "K", &unique))
        return NULL;
    return PyBool_FromLong(caller_at(unique, 0) >= 0);
}

static PyObject *give_up(PyObject *module, PyObject *args)
{
    ull unique;
    if (!PyArg_ParseTuple(args, "K", &unique))
        return NULL;
    if (mounted && caller_at(unique, 0) >= 0) {
        struct out_header header = {sizeof header, -EINTR, unique};
        caller_is_answered(unique);
        if (write(fuse_session_fd(session), &header, sizeof header) < 0 && errno != ENOENT)
            return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

static PyObject *abandon(PyObject *module, PyObject *unused)
{
    abandoned = 1;
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"configure", (PyCFunction)(void (*)(void))configure, METH_VARARGS | METH_KEYWORDS, "what the next session gets"},
    {"current_request", current_request, METH_NOARGS, "(unique, opcode, flags, lock_owner, uid, gid, resent) of the request just read"},
    {"current_call", current_call, METH_NOARGS, "the `unique` of the request just read, with the highest bit set if it was sent again"},
    {"on_interrupted", on_interrupted, METH_O, "on_interrupted(callback(unique, pid)): a signal hit the caller of a request under way"},
    {"is_waiting", is_waiting, METH_VARARGS, "is_waiting(unique): not answered yet"},
    {"give_up", give_up, METH_VARARGS, "give_up(unique): answer EINTR if nothing was answered yet; what the handler answers later goes nowhere"},
    {"abandon", abandon, METH_NOARGS, "answer no open Request any more: this process ends, the next one gets them"},
    {"info", info, METH_NOARGS, "(mounted, hooked, fd, libfuse, offered, agreed, max_write, max_readahead, max_background, lost_races, instant_answers)"},
    {"request_counts", request_counts, METH_NOARGS, "opcode -> number of requests"},
    {"init_exchange", init_exchange, METH_NOARGS, "(request, reply) of INIT; empty before it"},
    {"replay_init", replay_init, METH_VARARGS, "replay_init(request, reply): the next session gets this INIT, the kernel no answer"},
    {"notify", notify, METH_VARARGS, "notify(code, payload): a raw FUSE_NOTIFY_*; may block; any thread"},
    {0}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_companion", NULL, -1, functions, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__companion(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (!module)
        return NULL;
    request_type = (PyTypeObject *)PyType_FromSpec(&request_spec);
    if (!request_type || PyModule_AddObjectRef(module, "Request", (PyObject *)request_type)) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}

#include "ring.h"

#include <errno.h>

#if defined(__linux__) && __has_include(<linux/io_uring.h>)

#include <linux/io_uring.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static long enter(const lm_ring *ring, uint32_t n_submit, uint32_t n_wait, uint32_t flags) {
    return syscall(SYS_io_uring_enter, ring->fd, n_submit, n_wait, flags, NULL, 0);
}

static uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }

static int map_queues(lm_ring *ring, const struct io_uring_params *p) {
    ring->rings_nbytes = larger(p->sq_off.array + p->sq_entries * sizeof(uint32_t),
                                p->cq_off.cqes + p->cq_entries * sizeof(struct io_uring_cqe));
    ring->entries_nbytes = p->sq_entries * sizeof(struct io_uring_sqe);
    int protection = PROT_READ | PROT_WRITE, flags = MAP_SHARED | MAP_POPULATE;
    ring->rings = mmap(NULL, ring->rings_nbytes, protection, flags, ring->fd, IORING_OFF_SQ_RING);
    ring->entries = mmap(NULL, ring->entries_nbytes, protection, flags, ring->fd, IORING_OFF_SQES);
    if (ring->rings == MAP_FAILED || ring->entries == MAP_FAILED) return errno;
    char *rings = ring->rings;
    ring->submission_tail = (uint32_t *)(rings + p->sq_off.tail);
    ring->submission_mask = p->sq_entries - 1;
    ring->submission_order = (uint32_t *)(rings + p->sq_off.array);
    ring->completion_head = (uint32_t *)(rings + p->cq_off.head);
    ring->completion_tail = (uint32_t *)(rings + p->cq_off.tail);
    ring->completion_mask = p->cq_entries - 1;
    ring->completions = rings + p->cq_off.cqes;
    return 0;
}

int lm_ring_open(lm_ring *ring) {
    memset(ring, 0, sizeof *ring);
    ring->rings = ring->entries = MAP_FAILED;
    struct io_uring_params parameters;
    memset(&parameters, 0, sizeof parameters);
    ring->fd = (int)syscall(SYS_io_uring_setup, RING_ENTRIES, &parameters);
    if (ring->fd < 0) return errno;
    uint32_t wanted = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_RW_CUR_POS;
    int error = (parameters.features & wanted) == wanted ? map_queues(ring, &parameters) : ENOSYS;
    if (error) lm_ring_close(ring);
    return error;
}

void lm_ring_close(lm_ring *ring) {
    if (ring->fd < 0) return;
    if (ring->rings != MAP_FAILED) munmap(ring->rings, ring->rings_nbytes);
    if (ring->entries != MAP_FAILED) munmap(ring->entries, ring->entries_nbytes);
    close(ring->fd);
    ring->fd = -1;
}

void lm_ring_queue(lm_ring *ring, int fd, void *address, uint32_t nbytes, uint64_t offset,
                   uint64_t tag, bool chained) {
    uint32_t tail = *ring->submission_tail, index = tail & ring->submission_mask;
    struct io_uring_sqe *entry = (struct io_uring_sqe *)ring->entries + index;
    memset(entry, 0, sizeof *entry);
    entry->opcode = IORING_OP_READ;
    entry->flags = chained ? IOSQE_IO_LINK : 0;
    entry->fd = fd;
    entry->addr = (uint64_t)(uintptr_t)address;
    entry->len = nbytes;
    entry->off = offset;
    entry->user_data = tag;
    ring->submission_order[index] = index;
    __atomic_store_n(ring->submission_tail, tail + 1, __ATOMIC_RELEASE);
    ring->queued++;
}

uint32_t lm_ring_submit(lm_ring *ring) {
    while (ring->queued) {
        long begun = enter(ring, ring->queued, 0, 0);
        if (begun < 0 && errno == EINTR) continue;
        if (begun <= 0) break;
        ring->queued -= (uint32_t)begun;
    }
    uint32_t refused = ring->queued;
    uint32_t tail = *ring->submission_tail - refused;
    __atomic_store_n(ring->submission_tail, tail, __ATOMIC_RELEASE);
    ring->queued = 0;
    return refused;
}

bool lm_ring_take(lm_ring *ring, uint64_t *tag, int32_t *result) {
    uint32_t head = *ring->completion_head;
    if (head == __atomic_load_n(ring->completion_tail, __ATOMIC_ACQUIRE)) return false;
    const struct io_uring_cqe *end =
        (struct io_uring_cqe *)ring->completions + (head & ring->completion_mask);
    *tag = end->user_data;
    *result = end->res;
    __atomic_store_n(ring->completion_head, head + 1, __ATOMIC_RELEASE);
    return true;
}

int lm_ring_wait(lm_ring *ring) { return enter(ring, 0, 1, IORING_ENTER_GETEVENTS) < 0 ? errno : 0; }

#else

int lm_ring_open(lm_ring *ring) {
    ring->fd = -1;
    return ENOSYS;
}

void lm_ring_close(lm_ring *ring) { (void)ring; }

void lm_ring_queue(lm_ring *ring, int fd, void *address, uint32_t nbytes, uint64_t offset,
                   uint64_t tag, bool chained) {
    (void)ring, (void)fd, (void)address, (void)nbytes, (void)offset, (void)tag, (void)chained;
}

uint32_t lm_ring_submit(lm_ring *ring) {
    (void)ring;
    return 0;
}

bool lm_ring_take(lm_ring *ring, uint64_t *tag, int32_t *result) {
    (void)ring, (void)tag, (void)result;
    return false;
}

int lm_ring_wait(lm_ring *ring) {
    (void)ring;
    return ENOSYS;
}

#endif

/* Reads that begin and end without a thread of their own: io_uring, or nothing where there is none.
 *
 * The same as cache/ring.py, for the one thread that decodes. See there for why.
 */
#ifndef LOCALMOE_RING_H
#define LOCALMOE_RING_H

#include <stdbool.h>
#include <stdint.h>

enum { RING_ENTRIES = 128 };

/* What has to be known of the kernel's two queues. */
typedef struct {
    int fd;
    uint32_t *submission_tail, submission_mask;
    uint32_t *submission_order;
    void *entries;
    uint32_t *completion_head, *completion_tail, completion_mask;
    void *completions;
    void *rings;
    uint64_t rings_nbytes, entries_nbytes;
    uint32_t queued;
} lm_ring;

/* Return 0, or an errno where the kernel has no io_uring or does not let this process use it. */
int lm_ring_open(lm_ring *ring);
void lm_ring_close(lm_ring *ring);

/* Note a read for the next submit; at most RING_ENTRIES may be queued or in flight.
 * A chained one lets the next one begin when it has ended, and has it cancelled if it fails. */
void lm_ring_queue(lm_ring *ring, int fd, void *address, uint32_t nbytes, uint64_t offset,
                   uint64_t tag, bool chained);

/* Start what is queued; return how many reads the kernel did not take, the last ones queued. */
uint32_t lm_ring_submit(lm_ring *ring);

/* Take the next read that has ended, if there is one. */
bool lm_ring_take(lm_ring *ring, uint64_t *tag, int32_t *result);

/* Block until a read has ended: 0, or EINTR where a signal came first, or another errno. */
int lm_ring_wait(lm_ring *ring);

#endif

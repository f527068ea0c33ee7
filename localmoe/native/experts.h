/* The experts of one token's layer: hits at once, misses read into the slots of those that may go.
 *
 * What cache/expert_cache.py does for any request, done here for the most frequent one, without
 * the interpreter. The tables belong to Python, which changes them while no decode is under way or
 * when it is called; what was done here meanwhile is in the log, for it to note.
 */
#ifndef LOCALMOE_EXPERTS_H
#define LOCALMOE_EXPERTS_H

#include <stdbool.h>
#include <stdint.h>

#include "ring.h"

enum {
    MOST_USED = 64,  /* experts per token and layer */
    MOST_PARTS = 16, /* of an expert */
    ABSENT = -1,     /* for a slot: the expert is in none */
    ELSEWHERE = -2,  /* for a slot: it is on its way, and Python knows about it */
};

/* Where one part of a layer's experts lies, in the file and in a slot. */
typedef struct {
    uint64_t offset, nbytes; /* of expert 0 in the file; of each expert */
    uint64_t start;          /* in a slot */
    int32_t fd, block;       /* -1: it has to be read by Python */
} lm_part;

typedef struct {
    int32_t *slots; /* [n_experts], or ABSENT or ELSEWHERE */
    const lm_part *parts;
    int32_t n_experts, n_parts, class_index, reserved;
} lm_layer;

/* Slots of one size, and which of them may be used anew. */
typedef struct {
    uint8_t *base;
    uint64_t stride;
    uint64_t *demanded; /* [slots]: the request that used it last */
    int32_t *holders;   /* [slots, 2]: layer row and expert, -1 where it is free */
    int32_t *candidates;
    uint64_t listed_at; /* candidates that were demanded after this request are none any more */
    int32_t n_candidates, next_candidate;
} lm_class;

/* An expert on its way. */
typedef struct {
    int32_t expert, slot, failed;
    int32_t away[MOST_PARTS]; /* reads of each part that have not ended */
} lm_load;

typedef struct {
    uint8_t *address;
    uint64_t offset;
    uint32_t nbytes, needed; /* whole blocks, and what of them must come */
    uint32_t lead, fd;       /* bytes before those that are wanted */
    int32_t load, part;
    bool moves; /* the part does not lie in the file as it does in the slot */
} lm_read;

typedef enum { FINE, READ_FAILED, INTERRUPTED, NOT_COMPUTED, NOT_PREPARED } lm_trouble;

typedef struct {
    /* What Python gives and may change. */
    lm_layer *layers;
    lm_class *classes;
    void (*settle)(void); /* note the log, and list new candidates */
    int32_t *log;
    int32_t log_size, log_used;
    int32_t settle_at;   /* words in the log from which on a long wait is used to settle */
    int32_t look_limit;  /* so many reads are seen to have ended at once; 0: all */
    int32_t interrupted; /* end soon */

    /* What went wrong, for Python to raise. */
    int32_t trouble, failed_row, failed_part, failed_expert, failed_errno;

    double spin_seconds;  /* so long a wait keeps its core */
    double stall_seconds; /* waited for reads */
    uint64_t request;     /* the number of the last one */
    uint64_t known;       /* and of the last one that is in the log, or was left to Python */

    /* The request that is held. */
    int32_t row, n_used, n_loads;
    int32_t experts[MOST_USED], slots[MOST_USED], load_of[MOST_USED];
    lm_load loads[MOST_USED];

    lm_ring ring;
    lm_read reads[RING_ENTRIES];
    int32_t n_reads, n_away;
} lm_experts;

/* Return 0, or an errno: without io_uring only hits are served. */
int lm_experts_open(lm_experts *e);
void lm_experts_close(lm_experts *e);

/* Hold one token's experts of a layer, and start to read what is missing. False: ask Python. */
bool lm_experts_acquire(lm_experts *e, int32_t row, const int32_t *ids, int32_t n);

/* Whether a part of every expert has come, or failed. */
bool lm_experts_ready(lm_experts *e, int32_t part);

/* Block until a part of every expert has come. False: trouble. */
bool lm_experts_wait(lm_experts *e, int32_t part);

/* Block until a part of some of the experts at `pending` has come. Those that are there are moved
 * to the front, the others keep their order; return how many are there, or -1: trouble. */
int32_t lm_experts_arrivals(lm_experts *e, int32_t part, int32_t *pending, int32_t n);

/* Let go of what is held, once every read has ended. */
void lm_experts_release(lm_experts *e);

double lm_seconds(void);

#endif

#include "experts.h"

#include <errno.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    PIECE_NBYTES = 4 << 20,    /* longer parts are read in pieces, as the reader's workers do */
    MOST_MOVED_NBYTES = 1 << 18, /* what does not lie as it should is moved; workers move more */
    MOST_INTO_FREE = 16,       /* pages of slots that nobody used come faster in several threads */
    NOT_HELD = -1,
};

double lm_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

int lm_experts_open(lm_experts *e) {
    e->row = NOT_HELD;
    return lm_ring_open(&e->ring);
}

void lm_experts_close(lm_experts *e) {
    lm_experts_release(e);
    lm_ring_close(&e->ring);
}

/* ---- reads ----------------------------------------------------------------------------------- */

static bool moves(const lm_part *part, uint64_t offset, const uint8_t *target) {
    return (offset - (uint64_t)(uintptr_t)target) % (uint64_t)part->block != 0;
}

/* Cut the read of one part into pieces; write them to `out` unless it is NULL. */
static int32_t cut(const lm_part *part, int32_t expert, uint8_t *target, lm_read *out) {
    uint64_t offset = part->offset + (uint64_t)expert * part->nbytes, block = (uint64_t)part->block;
    bool moved = moves(part, offset, target);
    uint64_t longest = moved ? part->nbytes : PIECE_NBYTES - offset % block, done = 0;
    int32_t count = 0;
    while (done < part->nbytes) {
        uint64_t nbytes = part->nbytes - done < longest ? part->nbytes - done : longest;
        if (out) {
            uint32_t lead = (uint32_t)((offset + done) % block);
            lm_read *read = out + count;
            read->fd = (uint32_t)part->fd;
            read->lead = lead;
            read->moves = moved;
            read->offset = offset + done - lead;
            read->address = moved ? target : target + done - lead;
            read->needed = (uint32_t)(lead + nbytes);
            read->nbytes = (uint32_t)((lead + nbytes + block - 1) / block * block);
        }
        done += nbytes;
        longest = PIECE_NBYTES;
        count++;
    }
    return count;
}

/* Return how many reads bring one expert of a layer, or -1 where Python has to do it. */
static int32_t count_reads(const lm_experts *e, const lm_layer *layer, int32_t expert) {
    const lm_class *slots = e->classes + layer->class_index;
    int32_t count = 0;
    for (int32_t p = 0; p < layer->n_parts; p++) {
        const lm_part *part = layer->parts + p;
        if (part->fd < 0 || e->ring.fd < 0) return -1;
        uint64_t offset = part->offset + (uint64_t)expert * part->nbytes;
        bool moved = moves(part, offset, slots->base + part->start);
        if (moved && part->nbytes > MOST_MOVED_NBYTES) return -1;
        count += cut(part, expert, slots->base + part->start, NULL);
    }
    return count;
}

/* Read what is wanted by a call that waits; return an errno, or -1 if the file ends before. */
static int read_now(const lm_read *read) {
    uint32_t done = 0;
    while (done < read->needed) {
        ssize_t got = pread((int)read->fd, read->address + done, read->nbytes - done,
                            (off_t)(read->offset + done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return errno;
        if (done + (uint32_t)got < read->needed) got -= got % 4096; /* the next one begins aligned */
        if (got == 0) return -1;
        done += (uint32_t)got;
    }
    return 0;
}

static void fail(lm_experts *e, const lm_load *load, int32_t part, int error) {
    if (e->trouble == FINE) {
        e->failed_row = e->row;
        e->failed_part = part;
        e->failed_expert = load->expert;
        e->failed_errno = error < 0 ? 0 : error;
    }
}

/* Note that a read has ended: with so many bytes, or a negative errno. */
static void ended(lm_experts *e, const lm_read *read, int32_t result) {
    lm_load *load = e->loads + read->load;
    /* Failed, cut short, or cancelled behind one that was: again, for the error or the rest. */
    int error = result < 0 || (uint32_t)result < read->needed ? read_now(read) : 0;
    if (error && !load->failed) {
        load->failed = 1;
        fail(e, load, read->part, error);
    } else if (!error && read->moves) {
        memmove(read->address, read->address + read->lead, read->needed - read->lead);
    }
    load->away[read->part]--;
    e->n_away--;
}

static bool look(lm_experts *e) {
    uint64_t tag;
    int32_t result, seen = 0;
    while ((!e->look_limit || seen < e->look_limit) && lm_ring_take(&e->ring, &tag, &result)) {
        ended(e, e->reads + tag, result);
        seen++;
    }
    return seen > 0;
}

static void pause_briefly(void) {
#if defined(__x86_64__)
    for (int i = 0; i < 32; i++) __builtin_ia32_pause();
#elif defined(__aarch64__)
    for (int i = 0; i < 32; i++) __asm__ volatile("yield");
#endif
}

/* Look for what comes soon without going to sleep: a thread that sleeps is often woken on another
 * core, where one of those it computes with is then in its way. */
static bool look_closely(lm_experts *e) {
    double until = lm_seconds() + e->spin_seconds;
    do {
        if (look(e)) return true;
        pause_briefly();
    } while (lm_seconds() < until);
    return false;
}

/* Block until something has come; false if a signal did, and the decode is to end. */
static bool look_longer(lm_experts *e) {
    if (look_closely(e)) return true;
    int error = lm_ring_wait(&e->ring);
    if (error == EINTR) {
        e->settle(); /* the interpreter runs, and with it handlers of signals */
        return !e->interrupted;
    }
    if (error) { /* what was started ends all the same */
        struct timespec moment = {0, 1000000};
        nanosleep(&moment, NULL);
    }
    return true;
}

/* Start the reads of one expert: each part's after that of the part before. */
static void queue(lm_experts *e, int32_t number) {
    lm_load *load = e->loads + number;
    const lm_layer *layer = e->layers + e->row;
    const lm_class *slots = e->classes + layer->class_index;
    uint8_t *slot = slots->base + (uint64_t)load->slot * slots->stride;
    for (int32_t p = 0; p < layer->n_parts; p++) {
        lm_read *read = e->reads + e->n_reads;
        int32_t count = cut(layer->parts + p, load->expert, slot + layer->parts[p].start, read);
        load->away[p] = count;
        for (int32_t i = 0; i < count; i++, read++) {
            bool last = p == layer->n_parts - 1 && i == count - 1;
            read->load = number;
            read->part = p;
            lm_ring_queue(&e->ring, (int)read->fd, read->address, read->nbytes, read->offset,
                          (uint64_t)e->n_reads++, !last);
            e->n_away++;
        }
    }
}

static void start_reads(lm_experts *e) {
    e->n_reads = 0;
    for (int32_t i = 0; i < e->n_loads; i++) queue(e, i);
    uint32_t refused = lm_ring_submit(&e->ring);
    for (int32_t i = e->n_reads - (int32_t)refused; i < e->n_reads; i++) ended(e, e->reads + i, -1);
}

/* ---- slots ----------------------------------------------------------------------------------- */

/* Take slots of experts that nobody has demanded since they were listed; return how many. */
static int32_t take(const lm_experts *e, lm_class *slots, int32_t *taken, int32_t wanted) {
    int32_t found = 0;
    while (found < wanted && slots->next_candidate < slots->n_candidates) {
        int32_t slot = slots->candidates[slots->next_candidate++];
        uint64_t last = slots->demanded[slot];
        if (last <= slots->listed_at && last != e->request) taken[found++] = slot;
    }
    return found;
}

static bool find_slots(lm_experts *e, lm_class *slots, int32_t *taken, int32_t wanted) {
    if (take(e, slots, taken, wanted) == wanted) return true;
    e->settle(); /* makes a new list: what was taken from the old one may be on it again */
    return take(e, slots, taken, wanted) == wanted;
}

static void note(lm_experts *e, int32_t word) { e->log[e->log_used++] = word; }

/* Give a missing expert a slot; note who had it. */
static void put(lm_experts *e, int32_t place, int32_t slot) {
    lm_layer *layer = e->layers + e->row;
    lm_class *slots = e->classes + layer->class_index;
    int32_t *holder = slots->holders + 2 * slot, expert = e->experts[place];
    note(e, expert);
    note(e, slot);
    note(e, holder[0]);
    note(e, holder[1]);
    if (holder[0] >= 0) e->layers[holder[0]].slots[holder[1]] = ABSENT;
    holder[0] = e->row;
    holder[1] = expert;
    layer->slots[expert] = slot;
    slots->demanded[slot] = e->request;
    lm_load *load = e->loads + e->n_loads;
    load->expert = expert;
    load->slot = slot;
    load->failed = 0;
    e->slots[place] = slot;
    e->load_of[place] = e->n_loads++;
}

/* Whether any of these slots is free: then its memory may not have been touched yet. */
static bool any_free(const lm_class *slots, const int32_t *taken, int32_t n) {
    for (int32_t i = 0; i < n; i++)
        if (slots->holders[2 * taken[i]] < 0) return true;
    return false;
}

/* Find out what is missing; return how many, or -1 where Python has to decide. */
static int32_t look_up(lm_experts *e, const lm_layer *layer, int32_t n, int32_t *missing) {
    lm_class *slots = e->classes + layer->class_index;
    int32_t n_missing = 0, n_reads = 0;
    for (int32_t i = 0; i < n; i++) {
        int32_t expert = e->experts[i];
        if (expert < 0 || expert >= layer->n_experts) return -1;
        for (int32_t j = 0; j < i; j++)
            if (e->experts[j] == expert) return -1;
        int32_t slot = layer->slots[expert];
        if (slot == ELSEWHERE) return -1;
        e->slots[i] = slot;
        e->load_of[i] = -1;
        if (slot >= 0) {
            slots->demanded[slot] = e->request;
            continue;
        }
        int32_t reads = count_reads(e, layer, expert);
        n_reads += reads;
        if (reads < 0 || n_reads > RING_ENTRIES) return -1;
        missing[n_missing++] = i;
    }
    return n_missing;
}

static bool hold(lm_experts *e, int32_t row, const int32_t *ids, int32_t n) {
    int32_t missing[MOST_USED], taken[MOST_USED];
    lm_layer *layer = e->layers + row;
    lm_class *slots = e->classes + layer->class_index;
    if (n < 1 || n > MOST_USED) return false;
    memcpy(e->experts, ids, (size_t)n * sizeof *ids);
    int32_t n_missing = look_up(e, layer, n, missing);
    if (n_missing < 0) return false;
    if (n_missing && !find_slots(e, slots, taken, n_missing)) return false;
    bool many = n_missing * layer->n_parts > MOST_INTO_FREE;
    if (many && any_free(slots, taken, n_missing)) return false;
    e->row = row;
    e->n_used = n;
    e->n_loads = 0;
    note(e, n);
    note(e, row);
    note(e, n_missing);
    for (int32_t i = 0; i < n; i++) note(e, ids[i]);
    for (int32_t i = 0; i < n_missing; i++) put(e, missing[i], taken[i]);
    if (n_missing) start_reads(e);
    return true;
}

bool lm_experts_acquire(lm_experts *e, int32_t row, const int32_t *ids, int32_t n) {
    if (e->log_size - e->log_used < 3 + 9 * MOST_USED) e->settle();
    e->request++;
    bool held = hold(e, row, ids, n);
    e->known = e->request; /* candidates that are listed from now on were chosen knowing of it */
    return held;
}

static bool here(const lm_experts *e, int32_t place, int32_t part) {
    return e->load_of[place] < 0 || !e->loads[e->load_of[place]].away[part];
}

static bool any_failed(lm_experts *e) {
    for (int32_t i = 0; i < e->n_loads; i++)
        if (e->loads[i].failed) {
            e->trouble = READ_FAILED;
            return true;
        }
    return false;
}

static int32_t count_away(const lm_experts *e, int32_t part) {
    int32_t count = 0;
    for (int32_t i = 0; i < e->n_loads; i++) count += e->loads[i].away[part] > 0;
    return count;
}

bool lm_experts_ready(lm_experts *e, int32_t part) {
    if (!e->n_loads) return true;
    look(e);
    return !count_away(e, part);
}

/* Wait until fewer than `away` experts lack a part. */
static bool wait_for(lm_experts *e, int32_t part, int32_t away) {
    double began = lm_seconds();
    if (away > 1 && e->log_used >= e->settle_at) e->settle(); /* costs no time now */
    bool on = true;
    while (on && count_away(e, part) >= away) on = look_longer(e);
    e->stall_seconds += lm_seconds() - began;
    if (!on) e->trouble = INTERRUPTED;
    return on;
}

bool lm_experts_wait(lm_experts *e, int32_t part) {
    while (!lm_experts_ready(e, part))
        if (!wait_for(e, part, 1)) return false;
    return !any_failed(e);
}

int32_t lm_experts_arrivals(lm_experts *e, int32_t part, int32_t *pending, int32_t n) {
    int32_t later[MOST_USED];
    for (;;) {
        int32_t n_here = 0, n_later = 0;
        look(e);
        for (int32_t i = 0; i < n; i++) {
            if (here(e, pending[i], part)) pending[n_here++] = pending[i];
            else later[n_later++] = pending[i];
        }
        memcpy(pending + n_here, later, (size_t)n_later * sizeof *later);
        if (any_failed(e)) return -1;
        if (n_here) return n_here;
        if (!wait_for(e, part, count_away(e, part))) return -1;
    }
}

void lm_experts_release(lm_experts *e) {
    if (e->row == NOT_HELD) return;
    while (e->n_away) look_longer(e);
    for (int32_t i = 0; i < e->n_loads; i++) {
        if (!e->loads[i].failed) continue;
        /* Python frees the slot: until then nobody may find anything in it. */
        e->layers[e->row].slots[e->loads[i].expert] = ELSEWHERE;
        note(e, -1);
        note(e, e->row);
        note(e, e->loads[i].expert);
    }
    e->row = NOT_HELD;
    e->n_loads = 0;
}

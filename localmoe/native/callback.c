/* llama.cpp's evaluation callback for the steps of one token; everything else is left to Python.
 *
 * Asked before each of some 1,500 graph nodes of a token, and told after some. The same as
 * backends/llama/hook.py and arrivals.py, for layers that route one token: see there for why.
 */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "experts.h"

/* struct ggml_tensor, as backends/llama/bindings.py proves it. */
typedef struct lm_tensor {
    int32_t type;
    void *buffer;
    int64_t ne[4];
    size_t nb[4];
    int32_t op;
    int32_t op_params[16];
    int32_t flags;
    struct lm_tensor *src[10];
    struct lm_tensor *view_src;
    size_t view_offs;
    uint8_t *data;
    char name[64];
    void *extra;
    char padding[8];
} lm_tensor;

/* A weight tensor: which part of which layer's experts it holds. */
typedef struct {
    const lm_tensor *tensor;
    int32_t row, part;
} lm_weight;

/* Nodes that each multiply one row with one matrix of a weight tensor, and graphs of the first n
 * of them. */
typedef struct {
    lm_tensor *matrices, *rows, *nodes;
    void **graphs; /* [n_used + 1] */
} lm_products;

typedef struct {
    lm_experts *experts;
    /* Of llama.cpp. */
    int32_t mul_mat_id, add_id, get_rows, cpy, flash_attn, none, f32, reserved;
    int (*compute)(void *backend, void *graph);
    void (*set_threads)(void *backend, int n);
    void *backend;
    lm_tensor *alone; /* the only node of a graph: another node is copied to it, and computed */
    void *alone_graph;
    /* Of Python: its own callback; to let go of what it holds; to make a graph of n products. */
    bool (*python)(lm_tensor *node, bool ask, void *user);
    bool (*let_go)(void);
    bool (*prepare)(int32_t weight, lm_tensor *node, int32_t n);
    const lm_weight *weights; /* by address */
    lm_products *products;    /* [weights] */
    const int32_t *rows;      /* [layers of the model]: the layer's row, or -1 */
    uint8_t *routed;          /* [rows]: whether it was ever routed here */
    int32_t n_weights, n_layers;
    int32_t refuses; /* Python has an error to raise */
    int32_t watched; /* Python wants to see every routing */
    int32_t n_threads, n_shared_threads; /* of all, and what is left while others use cores, or 0 */
    void (*exchange)(lm_tensor *node); /* may change the numbers of a routing before it is seen */

    const lm_tensor *last_routed;
    uint64_t questions, stops;
    double stop_seconds, kernel_seconds;

    /* The layer that is computed. */
    int32_t mode; /* who holds its experts */
    lm_tensor *left_out;
    int32_t left_op, left_weight; /* -1: it is no product with experts */
    const uint8_t *ids;
    uint32_t waited; /* a bit for each part that is known to be there */
} lm_callback;

enum { NOBODY, HERE, PYTHON };

enum { SHARED_OUT_FROM = 512 }; /* positions: llama.cpp gives each thread some of so many */

static const char ROUTED[] = "ffn_moe_weights-";

static bool is_routing(const lm_tensor *node) {
    return strncmp(node->name, ROUTED, sizeof ROUTED - 1) == 0;
}

static bool ask_python(const lm_callback *c, lm_tensor *node, bool ask) {
    return c->python(node, ask, NULL);
}

static int by_address(const void *key, const void *item) {
    const lm_tensor *wanted = key, *found = ((const lm_weight *)item)->tensor;
    return wanted < found ? -1 : wanted > found;
}

static const lm_weight *find_weight(const lm_callback *c, const lm_tensor *tensor) {
    return bsearch(tensor, c->weights, (size_t)c->n_weights, sizeof *c->weights, by_address);
}

static const lm_layer *layer_of(const lm_callback *c) {
    return c->experts->layers + c->experts->row;
}

static bool all_waited(const lm_callback *c) {
    return c->waited == (1u << layer_of(c)->n_parts) - 1;
}

/* Note which parts have come by now: they need no stop of their own. */
static void note_waited(lm_callback *c) {
    for (int32_t part = 0; part < layer_of(c)->n_parts; part++)
        if (!(c->waited >> part & 1) && lm_experts_ready(c->experts, part)) c->waited |= 1u << part;
}

/* Have llama.cpp stop at a node, and not compute it. */
static bool leave_out(lm_callback *c, lm_tensor *node, int32_t weight) {
    c->left_out = node;
    c->left_op = node->op;
    c->left_weight = weight;
    node->op = c->none;
    return true;
}

static void put_back(lm_callback *c) {
    if (c->left_out) c->left_out->op = c->left_op;
    c->left_out = NULL;
}

static void let_go(lm_callback *c) {
    put_back(c);
    lm_experts_release(c->experts);
    c->mode = NOBODY;
}

/* ---- products -------------------------------------------------------------------------------- */

/* Whether a product is one token's, of float32 rows. */
static bool is_one_row(const lm_callback *c, const lm_tensor *node) {
    const lm_tensor *rows = node->src[1];
    return rows && node->ne[2] == 1 && node->ne[3] == 1 && rows->ne[2] == 1 && rows->ne[3] == 1 &&
           node->type == c->f32 && rows->type == c->f32;
}

/* Compute a graph of our own; on so many threads, unless that is 0. */
static lm_trouble run(lm_callback *c, void *graph, int32_t n_threads) {
    double began = lm_seconds();
    if (n_threads) c->set_threads(c->backend, n_threads);
    int status = c->compute(c->backend, graph);
    if (n_threads) c->set_threads(c->backend, c->n_threads);
    c->kernel_seconds += lm_seconds() - began;
    return status ? NOT_COMPUTED : FINE;
}

/* Compute one token's attention as all threads do it, while llama.cpp has fewer: each takes a share
 * of a long context, and what the shares add up to depends on their number. */
static bool attend(lm_callback *c, const lm_tensor *node) {
    memcpy(c->alone, node, sizeof *node);
    c->experts->trouble = (int32_t)run(c, c->alone_graph, 0);
    return c->experts->trouble == FINE;
}

static bool is_shared_attention(const lm_callback *c, const lm_tensor *node) {
    return c->n_shared_threads && node->op == c->flash_attn && node->src[0]->ne[1] == 1 &&
           node->src[1]->ne[1] >= SHARED_OUT_FROM;
}

/* Multiply for the token's experts at these places. */
static lm_trouble multiply(lm_callback *c, lm_tensor *node, const int32_t *places, int32_t n) {
    lm_products *products = c->products + c->left_weight;
    bool made = products->graphs && products->graphs[n] &&
                !memcmp(products->nodes->op_params, node->op_params, sizeof node->op_params);
    if (!made && !c->prepare(c->left_weight, node, n)) return NOT_PREPARED;
    const lm_tensor *matrices = node->src[0], *rows = node->src[1];
    /* Gate and up take the same row for all experts, down takes the expert's own. */
    size_t row_stride = rows->ne[1] > 1 ? rows->nb[1] : 0;
    for (int32_t i = 0; i < n; i++) {
        size_t place = (size_t)places[i], slot = (size_t)c->experts->slots[places[i]];
        products->matrices[i].data = matrices->data + slot * matrices->nb[2];
        products->rows[i].data = rows->data + place * row_stride;
        products->nodes[i].data = node->data + place * node->nb[1];
    }
    return run(c, products->graphs[n], c->n_shared_threads);
}

/* Compute a product that llama.cpp was told to leave out, in the order in which experts come. */
static bool compute(lm_callback *c, lm_tensor *node) {
    int32_t pending[MOST_USED], n = c->experts->n_used;
    for (int32_t i = 0; i < n; i++) pending[i] = i;
    for (int32_t *next = pending; n;) {
        int32_t here = lm_experts_arrivals(c->experts, c->weights[c->left_weight].part, next, n);
        if (here < 0) return false;
        lm_trouble trouble = multiply(c, node, next, here);
        if (trouble) {
            c->experts->trouble = (int32_t)trouble;
            return false;
        }
        next += here;
        n -= here;
    }
    note_waited(c);
    return true;
}

static bool before_product(lm_callback *c, lm_tensor *node, const lm_weight *weight) {
    const lm_tensor *ids = node->src[2];
    if (!ids || ids->data != c->ids || weight->row != c->experts->row) {
        let_go(c); /* a routing that was not seen: Python knows what to say */
        return ask_python(c, node, true);
    }
    if (!(c->waited >> weight->part & 1)) {
        bool product = node->op == c->mul_mat_id && is_one_row(c, node);
        if (product && !lm_experts_ready(c->experts, weight->part))
            return leave_out(c, node, (int32_t)(weight - c->weights));
        if (!lm_experts_wait(c->experts, weight->part)) return ask_python(c, node, true);
        note_waited(c);
    }
    /* Stop after this product only if a later one has to wait while this one computes. */
    return !all_waited(c);
}

/* ---- routing --------------------------------------------------------------------------------- */

/* Return the row of the layer that a routing is of, if it can be held here. */
static int32_t row_to_hold(const lm_callback *c, const lm_tensor *node, const lm_tensor *ids) {
    if (c->refuses || c->watched || c->experts->interrupted) return -1;
    if (ids->ne[1] != 1 || ids->ne[2] != 1 || ids->ne[3] != 1) return -1;
    long layer = strtol(node->name + sizeof ROUTED - 1, NULL, 10);
    return layer >= 0 && layer < c->n_layers ? c->rows[layer] : -1;
}

static bool route(lm_callback *c, lm_tensor *node) {
    lm_tensor *ids = node->src[1];
    if (ids->op == c->cpy) return c->mode == PYTHON ? ask_python(c, node, false) : true;
    int32_t row = row_to_hold(c, node, ids), *numbers = (int32_t *)(void *)ids->data;
    if (row >= 0 && c->exchange) c->exchange(node);
    if (row >= 0 && (c->mode != PYTHON || c->let_go())) {
        let_go(c);
        if (lm_experts_acquire(c->experts, row, numbers, (int32_t)ids->ne[0])) {
            memcpy(numbers, c->experts->slots, (size_t)c->experts->n_used * sizeof *numbers);
            c->ids = ids->data;
            c->mode = HERE;
            c->waited = c->experts->n_loads ? 0 : (1u << layer_of(c)->n_parts) - 1;
            c->last_routed = node;
            c->routed[row] = 1;
            return true;
        }
    }
    let_go(c);
    c->mode = PYTHON;
    return ask_python(c, node, false);
}

/* ---- the callback ---------------------------------------------------------------------------- */

static bool asked(lm_callback *c, lm_tensor *node) {
    c->questions++;
    if (c->refuses || c->experts->trouble) return ask_python(c, node, true);
    int32_t op = node->op;
    if (is_shared_attention(c, node)) return leave_out(c, node, -1);
    if (op == c->get_rows && (c->mode != PYTHON || is_routing(node))) return is_routing(node);
    if (op != c->mul_mat_id && op != c->add_id && op != c->get_rows) return false;
    if (c->mode == PYTHON) return ask_python(c, node, true);
    const lm_weight *weight = find_weight(c, node->src[op == c->mul_mat_id ? 0 : 1]);
    if (!weight) return false;
    return c->mode == HERE ? before_product(c, node, weight) : ask_python(c, node, true);
}

static bool computed(lm_callback *c, lm_tensor *node) {
    bool left_out = c->left_out != NULL, product = c->left_weight >= 0;
    put_back(c);
    if (c->experts->trouble) return ask_python(c, node, false);
    if (left_out) return (product ? compute(c, node) : attend(c, node)) || ask_python(c, node, false);
    if (node->op == c->get_rows && is_routing(node)) return route(c, node);
    return c->mode == HERE ? true : ask_python(c, node, false);
}

bool lm_callback_call(lm_tensor *node, bool ask, void *user) {
    lm_callback *c = user;
    if (ask) return asked(c, node);
    double began = lm_seconds();
    bool on = computed(c, node);
    c->stop_seconds += lm_seconds() - began;
    c->stops++;
    return on;
}

/* A step is over: let go of the last layer's experts. */
void lm_callback_finish(lm_callback *c) { let_go(c); }

/* ---- proof ----------------------------------------------------------------------------------- */

/* Write the sizes of all structures and the places of a tensor's fields; return how many. */
int32_t lm_layout(int64_t *out) {
    const int64_t found[] = {
        (int64_t)sizeof(lm_part),
        (int64_t)sizeof(lm_layer),
        (int64_t)sizeof(lm_class),
        (int64_t)sizeof(lm_experts),
        (int64_t)sizeof(lm_weight),
        (int64_t)sizeof(lm_products),
        (int64_t)sizeof(lm_callback),
        (int64_t)sizeof(lm_tensor),
        (int64_t)offsetof(lm_tensor, ne),
        (int64_t)offsetof(lm_tensor, nb),
        (int64_t)offsetof(lm_tensor, op),
        (int64_t)offsetof(lm_tensor, op_params),
        (int64_t)offsetof(lm_tensor, src),
        (int64_t)offsetof(lm_tensor, data),
        (int64_t)offsetof(lm_tensor, name),
        (int64_t)offsetof(lm_experts, slots),
        (int64_t)offsetof(lm_callback, kernel_seconds),
    };
    memcpy(out, found, sizeof found);
    return (int32_t)(sizeof found / sizeof *found);
}

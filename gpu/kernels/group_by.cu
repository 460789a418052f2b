// The fixed part of the group-by. The query's part, written by src/ops/group_by.rs and standing before it, defines
//   Inputs, key_of (a row's key words), state_of (a row's accumulators; false: filtered out), start_state, add_global,
//   add_shared, reduce_state, and STATE_WORDS, KEY_WORDS, PACKED, NULL_KEY_SLOT, SHARED_SLOTS.
//
// A slot is [tag][accumulators]. Packed: the tag is the key word; the key that equals EMPTY and the null key have slots
// behind the table. Wide: the tag is (upper half of the hash, number of the first row with this key); a row's number is
// never the lower half of EMPTY.
#define EMPTY 0x80000000ffffffffull
#define STRIDE (1 + STATE_WORDS)
#define STATE_ROOM (STATE_WORDS ? STATE_WORDS : 1)
#define LONGEST_PROBE 4096u

extern "C" __global__ void __launch_bounds__(256) clear_table(u64* slots, u64 count) {
    u64 state[STATE_ROOM];
    start_state(state);
    for (u64 at = (u64)blockIdx.x * 256 + threadIdx.x; at < count; at += (u64)gridDim.x * 256) {
        slots[at * STRIDE] = EMPTY;
        for (int word = 0; word < STATE_WORDS; word++) slots[at * STRIDE + 1 + word] = state[word];
    }
}

// Claims `slot` for `tag` if it is empty, and returns the tag that is there. A new group counts; from three quarters of
// the capacity on the table is too full, because probes get long.
__device__ __forceinline__ u64 claim(u64* slot, u64 tag, u64 capacity, u32* control) {
    u64 there = *(volatile u64*)slot;
    if (there == EMPTY) {
        there = atomicCAS(slot, EMPTY, tag);
        if (there == EMPTY) {
            if (atomicAdd(&control[1], 1u) >= capacity / 4 * 3) atomicOr(&control[0], FAULT_TABLE_FULL);
            return tag;
        }
    }
    return there;
}

__device__ __forceinline__ u64 hash_of(const u64* key) {
    u64 hash = mix(key[0]);
    for (int word = 1; word < KEY_WORDS; word++) hash = mix(hash ^ key[word]);
    return hash;
}

// The slot of a key in the table of the device; null when the table is too full, which is noted.
__device__ __forceinline__ u64* find_slot(const Inputs& in, u64* slots, u64 capacity, const u64* key, bool is_null, u64 row, u32* control) {
#if PACKED
    if (is_null || key[0] == EMPTY) {
        u64* slot = slots + (capacity + (is_null ? 0 : 1)) * STRIDE;
        claim(slot, 0, capacity, control);
        return slot;
    }
    u64 hash = mix(key[0]);
    u64 tag = key[0];
#else
    u64 hash = hash_of(key);
    u64 tag = (hash & 0xffffffff00000000ull) | row;

#endif
    u64 at = hash & (capacity - 1);
    for (u32 probes = 0; probes < LONGEST_PROBE && probes < capacity; probes++) {
        u64* slot = slots + at * STRIDE;
        u64 there = claim(slot, tag, capacity, control);
        if (there == tag) return slot;
#if !PACKED
        if ((there >> 32) == (tag >> 32)) {
            u64 other[KEY_WORDS];
            bool ignored = false;
            u32 known_fault = 0;  // that row was evaluated before and noted its faults then
            key_of(in, there & 0xffffffffull, other, ignored, known_fault);
            bool equal = true;
            for (int word = 0; word < KEY_WORDS; word++) equal &= other[word] == key[word];
            if (equal) return slot;
        }
#endif
        at = (at + 1) & (capacity - 1);
    }
    atomicOr(&control[0], FAULT_TABLE_FULL);
    return nullptr;
}

// The slot in the block's own table: a few steps of probing, then null and the caller goes to the device's table.
__device__ __forceinline__ u64* find_shared(u64* shared, u64 tag) {
    u32 at = (u32)mix(tag) & (SHARED_SLOTS - 1);
    for (u32 probes = 0; probes < 8; probes++) {
        u64* slot = shared + at * STRIDE;
        u64 there = *(volatile u64*)slot;
        if (there == EMPTY) {
            there = atomicCAS(slot, EMPTY, tag);
            if (there == EMPTY) there = tag;
        }
        if (there == tag) return slot;
        at = (at + 1) & (SHARED_SLOTS - 1);
    }
    return nullptr;
}

extern "C" __global__ void __launch_bounds__(512)
group_rows(Inputs in, u64 rows, u64* slots, u64 capacity, u64 use_shared, u32* control) {
    DYNAMIC_SHARED(u64, shared);
    u32 fault = 0;
    if (use_shared) {
        u64 state[STATE_ROOM];
        start_state(state);
        for (u32 at = threadIdx.x; at < SHARED_SLOTS; at += blockDim.x) {
            shared[at * STRIDE] = EMPTY;
            for (int word = 0; word < STATE_WORDS; word++) shared[at * STRIDE + 1 + word] = state[word];
        }
        __syncthreads();
    }
    // Whole warps enter every round: they exchange values below.
    for (u64 first = (u64)blockIdx.x * blockDim.x; first < rows; first += (u64)gridDim.x * blockDim.x) {
        const u64 row = first + threadIdx.x;
        u64 key[KEY_WORDS];
        u64 state[STATE_ROOM];
        bool is_null = false;
        bool open = row < rows && state_of(in, row, state, fault);
        if (open) key_of(in, row, key, is_null, fault);
        if (!use_shared) {
            if (open) {
                u64* slot = find_slot(in, slots, capacity, key, is_null, row, control);
                if (slot) add_global(slot + 1, state);
            }
            continue;
        }
        // The name of the group in the block's table: the key word, or for wide keys the slot of the device's table.
        u64 name = EMPTY;
        bool ordinary = open;
        if (open) {
#if PACKED
            name = key[0];
            ordinary = !is_null && name != EMPTY;
#else
            u64* slot = find_slot(in, slots, capacity, key, is_null, row, control);
            ordinary = slot != nullptr;
            open = ordinary;
            name = ordinary ? (u64)(slot - slots) : EMPTY;
#endif
        }
        // Lanes of the leader's group are summed first when they are many: with few groups the atomics would queue.
        const u32 candidates = __ballot_sync(ALL_LANES, ordinary);
        if (candidates) {
            const u32 leader = __ffs((int)candidates) - 1;
            const u64 leading = __shfl_sync(ALL_LANES, name, leader);
            const bool mine = ordinary && name == leading;
            const u32 peers = __ballot_sync(ALL_LANES, mine);
            if (__popc(peers) >= 8) {
                u64 keep[STATE_ROOM];
                for (int word = 0; word < STATE_WORDS; word++) keep[word] = state[word];
                reduce_state(state, mine);
                if (!mine) for (int word = 0; word < STATE_WORDS; word++) state[word] = keep[word];
                if (mine && LANE != leader) open = false;
            }
        }
        if (!open) continue;
        u64* slot = ordinary ? find_shared(shared, name) : nullptr;
        if (slot) {
            add_shared(slot + 1, state);
        } else {
#if PACKED
            slot = find_slot(in, slots, capacity, key, is_null, row, control);
#else
            slot = slots + name;
#endif
            if (slot) add_global(slot + 1, state);
        }
    }
    if (fault) atomicOr(&control[0], fault);
    if (!use_shared) return;
    __syncthreads();
    for (u32 at = threadIdx.x; at < SHARED_SLOTS; at += blockDim.x) {
        u64* mine = shared + at * STRIDE;
        if (mine[0] == EMPTY) continue;
#if PACKED
        u64 key[KEY_WORDS];
        key[0] = mine[0];
        u64* slot = find_slot(in, slots, capacity, key, false, 0, control);
#else
        u64* slot = slots + mine[0];
#endif
        if (slot) add_global(slot + 1, mine + 1);
    }
}

// Writes the groups densely, word by word: out[word * groups + group].
extern "C" __global__ void __launch_bounds__(256)
collect_groups(Inputs in, const u64* slots, u64 capacity, u64* out, u64 groups, u32* counter) {
    for (u64 at = (u64)blockIdx.x * 256 + threadIdx.x; at < capacity + 2; at += (u64)gridDim.x * 256) {
        const u64* slot = slots + at * STRIDE;
        if (slot[0] == EMPTY) continue;
        const u64 group = atomicAdd(counter, 1u);
        if (group >= groups) continue;
        u64 key[KEY_WORDS];
#if PACKED
        key[0] = at < capacity ? slot[0] : at == capacity ? 0 : EMPTY;
#if NULL_KEY_SLOT
        key[1] = at == capacity;
#endif
#else
        bool ignored = false;
        u32 fault = 0;
        key_of(in, slot[0] & 0xffffffffull, key, ignored, fault);
#endif
        for (int word = 0; word < KEY_WORDS; word++) out[word * groups + group] = key[word];
        for (int word = 0; word < STATE_WORDS; word++) out[(KEY_WORDS + word) * groups + group] = slot[1 + word];
    }
}

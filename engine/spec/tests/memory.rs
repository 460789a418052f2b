//! Hostile texts cost little memory and time: the allocations of the reading thread are counted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

thread_local! {
    static CURRENT_BYTES: Cell<usize> = const { Cell::new(0) };
    static PEAK_BYTES: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, counting what each thread holds.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(added: usize, removed: usize) {
    // Allocations while a thread is torn down are not counted.
    let _ = CURRENT_BYTES.try_with(|current| {
        current.set((current.get() + added).saturating_sub(removed));
        let _ = PEAK_BYTES.try_with(|peak| peak.set(peak.get().max(current.get())));
    });
}

// SAFETY: every call is passed on to the system's allocator unchanged; the counters neither allocate nor unwind.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size, layout.size());
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

/// The most bytes that this thread held during `work`, beyond what it held before.
fn peak_of<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = CURRENT_BYTES.get();
    PEAK_BYTES.set(before);
    let result = work();
    (result, PEAK_BYTES.get() - before)
}

#[test]
fn bombs_are_cheap() {
    let aliases = (1..30).fold(String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n"), |text, level| {
        text + &format!("a{level}: &a{level} [{}]\n", vec![format!("*a{}", level - 1); 9].join(", "))
    });
    let cases = [
        ("t.yaml", "aliases", aliases),
        ("t.yaml", "anchors", (0..100_000).map(|n| format!("k{n}: &a{n} x\n")).collect()),
        ("t.yaml", "brackets", "[".repeat(100_000)),
        ("t.yaml", "braces", "{a: ".repeat(100_000)),
        ("t.yaml", "dashes", "- ".repeat(100_000)),
        ("t.yaml", "a wide key", format!("[[{}]]", "a,".repeat(4_000_000))),
        ("t.yaml", "an open list", format!("- [{}", "\"a\",".repeat(2_000_000))),
        ("t.yaml", "a scalar", format!("a: \"{}", "\\u0041".repeat(1_000_000))),
        ("t.yaml", "duplicates", "a: 1\n".repeat(1_000_000)),
        ("t.yaml", "200 MB", "#".repeat(200_000_000)),
        ("t.sql", "parentheses", "(".repeat(8_000_000)),
        ("t.sql", "semicolons", ";".repeat(8_000_000)),
        ("t.sql", "dollars", "$a".repeat(4_000_000)),
        ("t.sql", "quotes", "'".repeat(7_999_999)),
    ];
    for (name, case, text) in cases {
        let start = Instant::now();
        let (result, peak_bytes) = peak_of(|| rowmill_spec::parse(name, &text).map(|_| ()));
        let took = start.elapsed();
        let reports = result.expect_err(case);
        assert!(reports.has_errors());
        assert!(peak_bytes < 60_000_000, "{case} took {peak_bytes} bytes");
        println!("{case}: {took:?}, {} kB beyond a text of {} kB", peak_bytes / 1000, text.len() / 1000);
        // The limit is a tenth of this on an idle machine.
        assert!(took < Duration::from_secs(1), "{case} took {took:?}");
    }
}

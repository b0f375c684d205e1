//! What the budget grants, with invented holders.

use super::*;

const MIB: usize = 1 << 20;
const BUFFER: usize = 256 * 1024;

#[test]
fn what_is_held_is_counted_by_kind_and_given_back() {
    let memory = Memory::new(MIB);
    let mut output = memory.hold(WaitingKind::Output);
    let mut input = Held::default();
    input.set(7);
    assert_eq!(memory.held(), 0, "counts nowhere yet");
    input.count_in(&memory, WaitingKind::Input);
    output.set(1000);
    input.set(500);
    output.set(300);
    assert_eq!(memory.held_as(WaitingKind::Output), 300);
    assert_eq!(memory.held_as(WaitingKind::Input), 500);
    assert_eq!((memory.held(), input.bytes()), (800, 500));
    drop(output);
    drop(input);
    assert_eq!(memory.held(), 0);
    for kind in WaitingKind::ALL {
        assert_eq!(memory.held_as(kind), 0, "{kind}");
    }
}

#[test]
fn far_from_the_bound_everybody_has_all_of_its_buffer() {
    let memory = Memory::new(1024 * MIB);
    assert_eq!(memory.mark(BUFFER), BUFFER);
    let mut held = memory.hold(WaitingKind::Output);
    held.set(511 * MIB);
    assert_eq!(memory.mark(BUFFER), BUFFER);
    held.set(800 * MIB);
    assert_eq!(memory.mark(BUFFER), BUFFER, "there is enough left");
    assert_eq!(memory.mark(100), 100, "and never more");
}

#[test]
fn a_few_get_all_of_their_buffers_however_little_there_is() {
    let memory = Memory::new(MIB);
    let buffer = memory.buffer(BUFFER);
    assert_eq!(buffer, MIB / 8);
    let mut holders = Vec::new();
    for _ in 0..3 {
        assert_eq!(memory.mark(buffer), buffer);
        let mut held = memory.hold(WaitingKind::Input);
        held.set(buffer);
        holders.push(held);
    }
}

/// Whoever comes takes all it may, and none of it leaves.
#[test]
fn those_who_come_late_get_a_share_and_the_bound_holds() {
    let memory = Memory::new(64 * MIB);
    let mut holders = Vec::new();
    let mut marks = Vec::new();
    for _ in 0..18_000 {
        let mark = memory.mark(BUFFER);
        let mut held = memory.hold(WaitingKind::Output);
        held.set(mark);
        holders.push(held);
        marks.push(mark);
    }
    assert!(marks.windows(2).all(|pair| pair[0] >= pair[1]), "it falls");
    assert_eq!(marks[100], BUFFER);
    assert!(marks[200] > 64 * 1024, "{}", marks[200]);
    assert!(marks[1500] >= SMALL, "{}", marks[1500]);
    assert_eq!(marks[17_999], 0);
    assert!(memory.held() < memory.limit() - memory.limit() / 16 + SMALL);
    assert!(!memory.is_full(), "something is left for the quick");
    holders.truncate(1000);
    assert!(memory.mark(BUFFER) >= SMALL, "and it rises again");
}

#[test]
fn at_the_end_only_what_is_certain_to_pass_is_read() {
    let memory = Memory::new(64 * MIB);
    let mut held = memory.hold(WaitingKind::Output);
    let seems = |certain: bool| !certain;
    held.set(62 * MIB);
    assert_eq!(memory.ration(BUFFER, 0, BUFFER, seems), SMALL);
    held.set(63 * MIB);
    assert_eq!(memory.ration(BUFFER, 0, BUFFER, seems), 0);
    // Nothing of it is kept, so it may be full.
    held.set(64 * MIB);
    assert_eq!(memory.ration(BUFFER, 0, BUFFER, |_| true), SMALL);
    assert_eq!(memory.ration(BUFFER, 1, BUFFER, |_| true), 0);
}

#[test]
fn a_system_without_memory_makes_less_wait_and_is_asked_again() {
    let memory = Memory::new(64 * MIB);
    assert!(memory.recover());
    let mut held = memory.hold(WaitingKind::Output);
    held.set(10 * MIB);
    let mut refused = Vec::<u8>::new().try_reserve(usize::MAX);
    let got = memory.get(|| std::mem::replace(&mut refused, Ok(())));
    assert_eq!(got, Ok(()), "by what was kept");
    assert!(memory.is_short() && memory.is_full());
    assert_eq!(
        memory.ration(BUFFER, 0, BUFFER, |_| true),
        0,
        "nobody is read"
    );
    assert!(memory.recover());
    assert_eq!(memory.limit(), 10 * MIB + MARGIN);
    assert_eq!(memory.ration(BUFFER, 0, BUFFER, |_| true), SMALL);
    assert_eq!(memory.ration(BUFFER, 0, BUFFER, |_| false), 0);
    held.set(11 * MIB);
    assert!(memory.is_full(), "another thread got some");
    memory.settle();
    assert_eq!(memory.limit(), 11 * MIB + MARGIN);
    held.set(10 * MIB);
    memory.settle();
    assert_eq!(memory.limit(), 11 * MIB + MARGIN);
    assert!(memory.is_lowered());
    memory.rise();
    assert_eq!(memory.limit(), 64 * MIB, "and there is more by now");
    assert!(!memory.is_lowered());
    let never = memory.get(|| Vec::<u8>::new().try_reserve(usize::MAX));
    assert!(never.is_err());
}

#[test]
fn a_capacity_leaves_room_for_more_but_not_beyond_the_mark() {
    for (needed, most, capacity) in [
        (1, 10_000, 1024),
        (1025, 10_000, 4096),
        (4096, 10_000, 4096),
        (5000, 100_000, 16_384),
        (5000, 10_000, 10_000),
        (9000, 10_000, 10_000),
        (11_000, 10_000, 11_000),
        (100, 50, 100),
    ] {
        assert_eq!(capacity_for(needed, most), capacity, "{needed} of {most}");
    }
}

#[test]
fn who_waits_for_room_is_woken_once_some_is_free() {
    let poll = mio::Poll::new().unwrap();
    let token = mio::Token(1);
    let memory = Memory::new(64 * MIB);
    memory.wakes(Arc::new(Waker::new(poll.registry(), token).unwrap()));
    let mut poll = poll;
    let mut woken = || {
        let mut events = mio::Events::with_capacity(4);
        poll.poll(&mut events, Some(std::time::Duration::ZERO))
            .unwrap();
        events.iter().count() > 0
    };
    let mut held = memory.hold(WaitingKind::Output);
    held.set(64 * MIB);
    held.set(60 * MIB);
    assert!(!woken(), "nobody waits");
    let level = memory.room_to_wait_for();
    assert_eq!(level, 59 * MIB);
    assert!(!memory.wait_until_below(level));
    held.set(59 * MIB);
    assert!(!woken(), "too little for a walk");
    held.set(58 * MIB);
    assert!(woken());
    held.set(MIB);
    assert!(!woken(), "once");
    assert!(memory.wait_until_below(level), "what is so already");
}

#[test]
fn near_the_bound_small_ones_are_read_and_beyond_it_only_what_passes() {
    let memory = Memory::new(64 * MIB);
    let mut held = memory.hold(WaitingKind::Output);
    let (yes, no) = (|_: bool| true, |_: bool| false);
    assert_eq!(memory.ration(BUFFER, 0, BUFFER, no), BUFFER);
    held.set(55 * MIB + MIB / 2);
    assert_eq!(memory.ration(BUFFER, 0, BUFFER, no), BUFFER / 2);
    held.set(57 * MIB);
    assert_eq!(memory.ration(BUFFER, 0, BUFFER, no), SMALL);
    assert_eq!(memory.ration(BUFFER, 100, BUFFER, no), SMALL - 100);
    assert_eq!(
        memory.ration(BUFFER, SMALL - 100, BUFFER, no),
        0,
        "a morsel"
    );
    assert_eq!(
        memory.ration(50, SMALL - 100, BUFFER, no),
        50,
        "all it wants"
    );
    held.set(61 * MIB);
    assert_eq!(memory.ration(BUFFER, 0, BUFFER, no), 0);
    assert_eq!(
        memory.ration(BUFFER, 0, BUFFER, yes),
        SMALL,
        "passes through"
    );
    assert_eq!(memory.ration(BUFFER, 1, BUFFER, yes), 0, "it waits already");
    held.set(64 * MIB);
    assert_eq!(memory.ration(BUFFER, 0, BUFFER, no), 0);
    assert_eq!(
        memory.ration(BUFFER, 0, BUFFER, yes),
        SMALL,
        "nothing of it is kept"
    );
}

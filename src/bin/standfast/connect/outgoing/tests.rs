//! What waits for the server, against the plainest model: lines in a list, byte by byte.

use super::*;
use crate::seeded::Seeded;

const POLICIES: [BufferPolicy; 3] = [
    BufferPolicy::Block,
    BufferPolicy::DropOldest,
    BufferPolicy::DropNew,
];

/// The same, written down as the words say it.
struct Model {
    most: usize,
    policy: BufferPolicy,
    connected: bool,
    lines: Vec<Line>,
    skipping: bool,
    dropped: Dropped,
}

#[derive(Default)]
struct Line {
    bytes: Vec<u8>,
    is_begun: bool,
    has_ended: bool,
}

impl Model {
    fn len(&self) -> usize {
        self.lines.iter().map(|line| line.bytes.len()).sum()
    }

    fn drop_line(&mut self, at: usize) {
        let line = self.lines.remove(at);
        self.dropped.lines += 1;
        self.dropped.bytes += line.bytes.len() as u64;
        self.skipping = !line.has_ended;
    }

    fn push(&mut self, byte: u8) -> bool {
        loop {
            if self.skipping {
                self.dropped.bytes += 1;
                self.skipping = byte != b'\n';
                return true;
            }
            if self.lines.last().is_none_or(|line| line.has_ended) {
                self.lines.push(Line::default());
            }
            let coming = self.lines.len() - 1;
            if self.len() < self.most {
                self.lines[coming].bytes.push(byte);
                self.lines[coming].has_ended = byte == b'\n';
                return true;
            }
            if self.connected || self.lines[coming].is_begun {
                return false;
            }
            match self.policy {
                BufferPolicy::Block => return false,
                BufferPolicy::DropNew => self.drop_line(coming),
                BufferPolicy::DropOldest => {
                    let oldest = self.lines.iter().position(|line| !line.is_begun);
                    self.drop_line(oldest.unwrap());
                }
            }
        }
    }

    fn send(&mut self) -> u8 {
        let at = self.lines.iter().position(|line| !line.bytes.is_empty());
        let line = &mut self.lines[at.unwrap()];
        line.is_begun = true;
        let byte = line.bytes.remove(0);
        self.lines
            .retain(|line| !line.bytes.is_empty() || !line.has_ended);
        byte
    }
}

#[test]
fn it_does_what_the_plainest_model_does() {
    for seed in 0..600 {
        let mut random = Seeded::new(seed);
        let most = 1 + random.below(40);
        let mean_line = 1 + random.below(30);
        let policy = POLICIES[random.below(3)];
        let mut outgoing = Outgoing::new(most, policy);
        let mut model = Model {
            most,
            policy,
            connected: false,
            lines: Vec::new(),
            skipping: false,
            dropped: Dropped::default(),
        };
        let mut next = 0_u8;
        for step in 0..400 {
            match random.below(10) {
                0 => {
                    model.connected = !model.connected;
                    if model.connected {
                        outgoing.connected();
                    } else {
                        outgoing.disconnected();
                    }
                }
                1..=4 if model.connected => {
                    let count = random.below(outgoing.front().len() + 1);
                    for at in 0..count {
                        assert_eq!(outgoing.front()[at], model.send(), "{seed}:{step}");
                    }
                    outgoing.advance(count);
                }
                _ => {
                    let bytes: Vec<u8> = (0..random.below(60))
                        .map(|_| {
                            next = next.wrapping_add(1);
                            match random.below(mean_line) {
                                0 => b'\n',
                                _ => next | 0x80,
                            }
                        })
                        .collect();
                    let more = outgoing.takes_more();
                    let taken = outgoing.push(&bytes);
                    assert!(bytes.is_empty() || more == (taken > 0), "{seed}:{step}");
                    let by_model = bytes.iter().take_while(|&&byte| model.push(byte)).count();
                    assert_eq!(taken, by_model, "{seed}:{step} {policy:?} of {most}");
                }
            }
            assert_eq!(outgoing.dropped(), model.dropped, "{seed}:{step}");
            assert_eq!(outgoing.len(), model.len(), "{seed}:{step}");
            assert!(outgoing.len() <= most);
            assert_eq!(outgoing.front().is_empty(), model.len() == 0);
        }
        outgoing.connected();
        while let Some(&byte) = outgoing.front().first() {
            assert_eq!(byte, model.send(), "{seed}");
            outgoing.advance(1);
        }
        assert_eq!(model.len(), 0, "{seed}");
    }
}

/// Pushes all of `bytes` in chunks of `size`, each offered once.
fn filled(most: usize, policy: BufferPolicy, bytes: &[u8], size: usize) -> Outgoing {
    let mut outgoing = Outgoing::new(most, policy);
    for chunk in bytes.chunks(size) {
        outgoing.push(chunk);
    }
    outgoing
}

fn waiting(outgoing: &mut Outgoing) -> Vec<u8> {
    let mut bytes = Vec::new();
    while !outgoing.front().is_empty() {
        let front = outgoing.front().to_vec();
        bytes.extend_from_slice(&front);
        outgoing.advance(front.len());
    }
    bytes
}

#[test]
fn whole_lines_are_dropped_and_counted() {
    let bytes = b"one\ntwo\nthree\nfour\n";
    for size in 1..=bytes.len() {
        let mut oldest = filled(12, BufferPolicy::DropOldest, bytes, size);
        assert_eq!(oldest.dropped(), Dropped { lines: 2, bytes: 8 });
        assert_eq!(waiting(&mut oldest), b"three\nfour\n");
        let mut newest = filled(12, BufferPolicy::DropNew, bytes, size);
        assert_eq!(
            newest.dropped(),
            Dropped {
                lines: 2,
                bytes: 11
            }
        );
        assert_eq!(waiting(&mut newest), b"one\ntwo\n");
    }
}

#[test]
fn a_line_longer_than_the_buffer_is_dropped_whole() {
    let bytes = b"a\nmuch too long for this\nb\n";
    for size in 1..=bytes.len() {
        for (policy, lines, left) in [
            (BufferPolicy::DropOldest, 2, &b"b\n"[..]),
            (BufferPolicy::DropNew, 1, b"a\nb\n"),
        ] {
            let mut outgoing = filled(8, policy, bytes, size);
            let bytes = (bytes.len() - left.len()) as u64;
            assert_eq!(outgoing.dropped(), Dropped { lines, bytes });
            assert_eq!(waiting(&mut outgoing), left);
        }
    }
}

#[test]
fn the_rest_of_a_line_that_was_begun_goes_first_and_is_never_dropped() {
    for policy in [BufferPolicy::DropOldest, BufferPolicy::DropNew] {
        let mut outgoing = Outgoing::new(8, policy);
        outgoing.connected();
        outgoing.push(b"begu");
        outgoing.advance(2);
        outgoing.disconnected();
        assert_eq!(outgoing.push(b"n\nx\ny\nz\n"), 8);
        assert_eq!(outgoing.dropped(), Dropped { lines: 1, bytes: 2 });
        outgoing.connected();
        let left: &[u8] = match policy {
            BufferPolicy::DropNew => b"gun\nx\ny\n",
            _ => b"gun\ny\nz\n",
        };
        assert_eq!(waiting(&mut outgoing), left);
    }
}

#[test]
fn a_begun_line_that_fills_the_buffer_waits() {
    let mut outgoing = Outgoing::new(4, BufferPolicy::DropOldest);
    outgoing.connected();
    outgoing.push(b"ab");
    outgoing.advance(2);
    outgoing.disconnected();
    assert_eq!(outgoing.push(b"cdefgh\n"), 4);
    assert!(!outgoing.takes_more());
    outgoing.connected();
    assert_eq!(outgoing.front(), b"cdef");
    outgoing.advance(4);
    assert_eq!(outgoing.push(b"gh\n"), 3);
    assert_eq!(waiting(&mut outgoing), b"gh\n");
    assert_eq!(outgoing.dropped(), Dropped::default());
}

#[test]
fn nothing_is_dropped_while_connected_and_block_needs_no_lines() {
    for policy in POLICIES {
        let mut outgoing = Outgoing::new(4, policy);
        outgoing.connected();
        assert_eq!(outgoing.push(b"a\nb\nc\n"), 4);
        assert_eq!(waiting(&mut outgoing), b"a\nb\n");
        assert_eq!(outgoing.dropped(), Dropped::default());
    }
    let mut outgoing = Outgoing::new(4, BufferPolicy::Block);
    assert_eq!(outgoing.push(&[0xff; 9]), 4);
    assert!(!outgoing.takes_more());
    assert_eq!(waiting(&mut outgoing), [0xff; 4]);
}

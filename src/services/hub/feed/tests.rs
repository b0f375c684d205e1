//! Readers and what they get.

use super::*;

fn publish(feed: &Feed, sender: u64, text: &str) -> Due {
    feed.publish(&said(sender, text), false, u64::MAX)
}

fn read(cursor: &mut Cursor, own: Option<u64>) -> String {
    let mut text = String::new();
    while let Some(stretch) = cursor.next_stretch(own) {
        cursor.at = stretch.end;
        text.push_str(std::str::from_utf8(&cursor.block.bytes[stretch]).unwrap());
    }
    text
}

#[test]
fn readers_get_everything_from_where_they_began() {
    let feed = Feed::new(1000);
    let mut early = feed.reader(0);
    assert_eq!(publish(&feed, 1, "one\n"), Due::Soon);
    assert_eq!(publish(&feed, 2, "two\n"), Due::Known);
    assert_eq!(read(&mut early, None), "", "gathered yet");
    feed.seal();
    assert_eq!(read(&mut early, None), "one\ntwo\n");
    let mut late = feed.reader(0);
    publish(&feed, 1, "three\n");
    feed.seal();
    assert_eq!(read(&mut late, None), "three\n");
    assert_eq!(read(&mut early, Some(1)), "");
    assert_eq!((early.position(), early.line()), (14, 3));
}

#[test]
fn several_blocks_are_read_in_one_go_and_as_far_as_they_were_taken() {
    let feed = Feed::new(1000);
    let mut reader = feed.reader(0);
    for lines in ["mine\n", "one\n", "two\n", "mine\n", "three\n"] {
        publish(&feed, u64::from(lines == "mine\n"), lines);
        feed.seal();
    }
    let end = feed.end();
    publish(&feed, 0, "later\n");
    feed.seal();
    let own = Some(1);
    let offered = |reader: &Cursor| -> Vec<String> {
        let stretches = reader.stretches(own, end);
        stretches
            .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
            .collect()
    };
    assert_eq!(offered(&reader), ["one\n", "two\n", "three\n"]);
    let rest = reader.advance(6, own).unwrap();
    assert_eq!(&reader.block.bytes[rest], b"o\n");
    assert_eq!(offered(&reader), ["o\n", "three\n"]);
    let rest = reader.advance(2, own).unwrap();
    assert_eq!(&reader.block.bytes[rest], b"three\n", "what is own is past");
    reader.advance(6, own);
    assert_eq!(reader.position(), end);
    assert!(offered(&reader).is_empty(), "what came later waits");
    assert_eq!(read(&mut reader, own), "later\n");
    assert_eq!(reader.advance(0, own), None);
}

#[test]
fn nobody_within_reach_loses_anything_and_no_more_is_kept() {
    let feed = Feed::new(100);
    let mut reader = feed.reader(0);
    for _ in 0..10 {
        publish(&feed, 1, "123456789\n");
    }
    feed.seal();
    assert_eq!(reader.position(), feed.oldest());
    publish(&feed, 1, &"123456789\n".repeat(20));
    feed.seal();
    assert!(reader.position() < feed.oldest());
    assert!(feed.end() - feed.oldest() >= 100);
    assert!(feed.end() - feed.oldest() < 125, "reach and a block");
    let missed = reader.jump(feed.oldest_reader(), None);
    assert_eq!(missed * 10, feed.oldest());
    let rest = read(&mut reader, None);
    assert_eq!(rest.len() as u64, feed.end() - feed.oldest());
    assert!(rest.starts_with("123456789\n"));
}

#[test]
fn nothing_is_published_behind_the_limit_what_is_gathered_included() {
    let feed = Feed::new(1000);
    let mut reader = feed.reader(0);
    let publish = |limit| feed.publish(&said(1, "ten bytes\n"), false, limit);
    assert_eq!(
        [0, 9, 10, 20].map(publish),
        [Due::Soon, Due::Full, Due::Known, Due::Known]
    );
    feed.seal();
    assert_eq!([29, 30].map(publish), [Due::Full, Due::Soon]);
    feed.seal();
    assert_eq!(read(&mut reader, None), "ten bytes\n".repeat(4));
}

#[test]
fn a_line_longer_than_all_is_kept_as_long_as_it_is_the_last() {
    let feed = Feed::new(10);
    let mut reader = feed.reader(0);
    assert_eq!(publish(&feed, 1, "a line longer than that\n"), Due::Now);
    assert_eq!(read(&mut reader, None), "a line longer than that\n");
    publish(&feed, 1, "another one, as long\n");
    assert_eq!(feed.oldest(), 24);
}

#[test]
fn history_is_that_many_lines_or_what_there_is() {
    let feed = Feed::new(1000);
    assert_eq!(read(&mut feed.reader(5), None), "");
    publish(&feed, 1, "1\n2\n3\n");
    feed.seal();
    publish(&feed, 1, "4\n5\n");
    for (history, text) in [
        (0, ""),
        (1, "5\n"),
        (2, "4\n5\n"),
        (3, "3\n4\n5\n"),
        (9, "1\n2\n3\n4\n5\n"),
    ] {
        assert_eq!(read(&mut feed.reader(history), None), text);
    }
}

#[test]
fn a_place_is_found_again_by_its_position() {
    let feed = Feed::new(8);
    for line in ["1\n", "22\n", "3\n", "44\n", "5\n"] {
        publish(&feed, 1, line);
    }
    feed.seal();
    let oldest = feed.oldest();
    assert!(oldest > 0);
    for (position, line, text, lost) in [
        (12, 5, "", 0),
        (10, 4, "5\n", 0),
        (7, 3, "44\n5\n", 0),
        (99, 9, "", 0),
    ] {
        let (mut reader, missed) = feed.reader_at(position, line);
        assert_eq!((read(&mut reader, None).as_str(), missed), (text, lost));
    }
    let (reader, missed) = feed.reader_at(0, 0);
    assert_eq!(reader.position(), oldest);
    assert_eq!(missed, reader.line());
}

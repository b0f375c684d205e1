//! Whole frames.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::termion::event::Key as Pressed;
use serde_json::json;
use standfast::CloseReason;

use super::*;
use crate::top::told;
use crate::top::words::{Glyphs, printable};

const NOW: Duration = Duration::from_secs(100);

fn board() -> Dashboard {
    let ended = [told::ended(4, CloseReason::KeepaliveDead)];
    let status = json!({
        "open": 2, "accepted": 5, "closed": [["peer-closed", 2], ["keepalive-dead", 1]], "ended": ended,
        "listeners": [{"address": "127.0.0.1:7000", "service": "echo", "accepted": 5, "open": 2, "closed": [["peer-closed", 3]]}],
    });
    let mut board = Dashboard::new(told::status_with(&status), NOW, 1000);
    board.listed(vec![
        told::connection(1, 5.0, 10),
        told::connection(2, 3.0, 10),
    ]);
    board
}

/// What a terminal of that size shows, without the spaces at the ends of its lines.
fn frame(board: &mut Dashboard, look: &Look, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal
        .draw(|frame| draw(frame, board, look, NOW))
        .unwrap();
    let buffer = terminal.backend().buffer();
    let line = |y| {
        let cells = (0..width).map(|x| buffer[(x, y)].symbol());
        cells.collect::<String>().trim_end().to_owned()
    };
    (0..height).map(line).collect()
}

const ASCII: Look = Look {
    has_colours: false,
    is_unicode: false,
    glyphs: Glyphs::ASCII,
};

#[test]
fn a_window_of_the_usual_size_has_figures_listeners_reasons_and_connections() {
    let shown = frame(&mut board(), &ASCII, 80, 24);
    let expected = [
        "standfast  serving  pid 36  up 1m00s  version 0.1.0  2 workers",
        "Connections                2 open  at most 2",
        "Accepted                   0 /s    at most 0",
        "Ended                      0 /s    at most 0",
        "Read from clients          0 /s    at most 0",
        "Written to clients         0 /s    at most 0",
        "Takeovers                  0",
        "Bytes that wait 0 of 256m   Descriptors 23 of 1,024",
        "Listeners                               Ends by reason",
        "ADDRESS        SERVICE OPEN ACCEPTED    peer-closed                 2 #######",
        "127.0.0.1:7000 echo       2        5    keepalive-dead              1 ####",
        "",
        "Connections 2  Ended last 1  Listeners 1  Ends by reason 2  Upstreams  Takeovers",
        "ID PEER             AGE IDLE READ/Sv WRITTEN/S READ WRITTEN WAITING UNACKED",
        " 1 127.0.0.1:50001 5.0s 0.5s       -         -   10      10       0       0",
        " 2 127.0.0.1:50002 3.0s 0.5s       -         -   10      10       0       0",
    ];
    println!("{}", shown.join("\n"));
    assert_eq!(shown[..12], expected[..12]);
    assert_eq!(shown[12..16], expected[12..]);
    assert_eq!(shown[23], FOOTER[..80].trim_end().to_owned());
}

#[test]
fn a_tiny_window_has_a_table_and_a_question_all_of_its_words() {
    let mut board = board();
    let shown = frame(&mut board, &ASCII, 20, 5);
    println!("{}", shown.join("\n"));
    assert_eq!(shown[0], "standfast  serving");
    assert_eq!(shown[1], "Connections 2");
    assert!(shown[2].starts_with("ID PEER"), "{}", shown[2]);
    assert!(shown[3].starts_with(" 1 127.0.0.1:50001"), "{}", shown[3]);
    board.press(Pressed::Down, NOW);
    board.press(Pressed::Char('k'), NOW);
    let shown = frame(&mut board, &ASCII, 20, 5);
    assert_eq!(
        shown[2..].concat(),
        "kill connection 1 of 127.0.0.1:50001? y/n"
    );
}

#[test]
fn no_size_is_too_small_or_too_large_for_any_table() {
    let look = Look::new(true, true);
    for (width, height) in [(1, 1), (2, 3), (20, 5), (40, 12), (80, 24), (300, 100)] {
        let mut board = board();
        for key in ['1', '2', '3', '4', '5', '6'] {
            board.press(Pressed::Char(key), NOW);
            for key in [
                Pressed::Down,
                Pressed::Char('\n'),
                Pressed::Right,
                Pressed::Esc,
            ] {
                board.press(key, NOW);
                frame(&mut board, &look, width, height);
            }
            board.press(Pressed::Char('/'), NOW);
            frame(&mut board, &look, width, height);
            board.press(Pressed::Esc, NOW);
        }
        board.press(Pressed::Char('?'), NOW);
        frame(&mut board, &look, width, height);
    }
}

#[test]
fn nothing_that_a_server_tells_reaches_the_terminal_but_as_text() {
    let hostile = "unix:/tmp/\u{1b}]0;gone\u{7}\u{9b}2J\u{202e}x\r\n";
    let status = json!({
        "version": hostile,
        "listeners": [{"address": hostile, "service": hostile, "accepted": 0}],
        "upstreams": [{"address": hostile, "up": true, "down_for": null}],
        "accept_paused": true,
        "accept_errors": [[hostile, 1]],
    });
    for look in [ASCII, Look::new(true, true)] {
        let mut board = Dashboard::new(told::status_with(&status), NOW, 1000);
        board.unanswered(hostile.to_owned(), NOW);
        board.killed(1, Err(hostile.to_owned()), NOW);
        for key in "35".chars() {
            board.press(Pressed::Char(key), NOW);
            for line in frame(&mut board, &look, 300, 50) {
                assert_eq!(line, printable(&line));
                assert!(look.is_unicode || line.is_ascii(), "{line}");
            }
        }
    }
}

#[test]
fn colours_are_left_out_where_nobody_wants_them() {
    let mut board = board();
    for (has_colours, expected) in [(true, true), (false, false)] {
        let look = Look::new(has_colours, true);
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal
            .draw(|frame| draw(frame, &mut board, &look, NOW))
            .unwrap();
        let mut cells = terminal.backend().buffer().content.iter();
        assert_eq!(cells.any(|cell| cell.fg != Color::Reset), expected);
    }
}

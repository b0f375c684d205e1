//! What keys do, and what stays over what is told.

use serde_json::json;

use super::*;
use crate::top::told;

const NOW: Duration = Duration::from_secs(100);

fn board(facts: &serde_json::Value) -> Dashboard {
    Dashboard::new(told::status_with(facts), NOW, 1000)
}

/// With connections 1 to 3.
fn watching() -> Dashboard {
    let mut board = board(&json!({"open": 3}));
    board.room = 10;
    board.listed([1, 2, 3].map(|id| told::connection(id, 5.0, 10)).to_vec());
    board
}

fn press(board: &mut Dashboard, keys: &[Pressed]) -> Option<Wish> {
    let mut wish = None;
    for key in keys {
        wish = board.press(*key, NOW);
    }
    wish
}

fn said(board: &Dashboard) -> &str {
    board.message(NOW).map_or("", |message| &message.text)
}

fn ids(board: &mut Dashboard) -> Vec<Key> {
    let (rows, _) = board.arranged();
    let table = board.table(board.view);
    rows.iter().filter_map(|row| table.key(*row)).collect()
}

#[test]
fn a_connection_is_killed_once_its_number_and_peer_were_answered_with_y() {
    let mut board = watching();
    assert_eq!(press(&mut board, &[Pressed::Char('k')]), None);
    assert_eq!(said(&board), "choose one by the arrow keys first");
    assert_eq!(board.asked, None);
    press(
        &mut board,
        &[Pressed::Down, Pressed::Down, Pressed::Char('k')],
    );
    assert_eq!(board.asked, Some((2, "127.0.0.1:50002".to_owned())));
    // What is no answer changes nothing, whatever else it means.
    for key in [
        Pressed::Down,
        Pressed::Char('\n'),
        Pressed::Char('k'),
        Pressed::Char('5'),
    ] {
        assert_eq!(press(&mut board, &[key]), None);
        assert!(board.asked.is_some());
    }
    assert_eq!(press(&mut board, &[Pressed::Char('n')]), None);
    assert_eq!((&board.asked, said(&board)), (&None, "2 is left alone"));
    let wish = press(&mut board, &[Pressed::Char('k'), Pressed::Char('y')]);
    assert_eq!(wish, Some(Wish::Kill(2)));
    board.killed(2, Ok(()), NOW);
    assert_eq!(said(&board), "killed 2");
    board.killed(2, Err("no such connection".to_owned()), NOW);
    assert_eq!(said(&board), "2 is not killed: no such connection");
    assert!(board.message(NOW + MESSAGE).is_none());
}

#[test]
fn a_question_about_a_connection_of_another_server_or_of_none_is_dropped() {
    let mut board = watching();
    press(&mut board, &[Pressed::Down, Pressed::Char('k')]);
    board.told(
        told::status_with(&json!({"pid": 37, "counted_for": 61.0})),
        Serves::Successor,
        NOW,
        1000,
    );
    assert!(
        board.asked.is_some(),
        "a takeover: it is the same connection"
    );
    assert_eq!(said(&board), "pid 37 took over from 36");
    board.told(
        told::status_with(&json!({"pid": 38, "counted_for": 1.0})),
        Serves::Other,
        NOW,
        1000,
    );
    assert_eq!(
        (&board.asked, said(&board)),
        (&None, "another server, started afresh")
    );
    assert_eq!(ids(&mut board), []);
    let mut board = watching();
    press(&mut board, &[Pressed::Down, Pressed::Char('k')]);
    board.unanswered("no server answers".to_owned(), NOW);
    board.unanswered("no server answers".to_owned(), NOW + MESSAGE);
    assert_eq!(board.asked, None);
    assert_eq!(
        board.waits(NOW + MESSAGE),
        Some((MESSAGE, "no server answers"))
    );
}

#[test]
fn a_server_that_hangs_is_said_to_after_a_while_and_until_it_answers() {
    let mut board = watching();
    board.asking(NOW);
    assert_eq!(board.waits(NOW + LONG / 2), None);
    let why = "it was asked, and does not answer";
    assert_eq!(board.waits(NOW + LONG), Some((LONG, why)));
    board.heard();
    assert_eq!(board.waits(NOW + LONG), None);
}

#[test]
fn the_choice_stays_with_its_connection_and_goes_to_the_next_when_that_ends() {
    let mut board = watching();
    press(&mut board, &[Pressed::Down, Pressed::Down]);
    let chosen = |board: &mut Dashboard| {
        board.arranged();
        board.choice().chosen.clone()
    };
    assert_eq!(chosen(&mut board), Some(Key::Number(2)));
    // 3 is the busiest now, so it stands first.
    let at = |age: f64, read: u64| move |id| told::connection(id, age, read);
    let (idle, busy) = (at(6.0, 10), at(6.0, 500));
    board.listed(vec![idle(1), idle(2), busy(3)]);
    assert_eq!(ids(&mut board), [3, 1, 2].map(Key::Number));
    assert_eq!(chosen(&mut board), Some(Key::Number(2)));
    let (idle, busy) = (at(7.0, 10), at(7.0, 900));
    board.listed(vec![idle(1), busy(3)]);
    assert_eq!(chosen(&mut board), Some(Key::Number(1)));
    board.listed(Vec::new());
    assert_eq!(chosen(&mut board), None);
}

#[test]
fn the_chosen_row_is_in_sight_however_few_are_shown() {
    let mut board = board(&json!({"open": 100}));
    board.listed((1..=100).map(|id| told::connection(id, 5.0, 10)).collect());
    board.room = 10;
    let from = |board: &mut Dashboard, keys: &[Pressed]| {
        press(board, keys);
        let (_, at) = board.arranged();
        (board.choice().from, at)
    };
    assert_eq!(from(&mut board, &[]), (0, None));
    assert_eq!(from(&mut board, &[Pressed::End]), (90, Some(99)));
    assert_eq!(from(&mut board, &[Pressed::PageUp]), (89, Some(89)));
    assert_eq!(from(&mut board, &[Pressed::Home]), (0, Some(0)));
    assert_eq!(from(&mut board, &[Pressed::PageDown]), (1, Some(10)));
    board.room = 0;
    assert_eq!(from(&mut board, &[Pressed::Down]), (11, Some(11)));
    assert_eq!(from(&mut board, &[Pressed::Esc]), (0, None));
}

#[test]
fn a_filter_is_of_one_table_and_kept_by_enter_alone() {
    let mut board = watching();
    let typed = |text: &str| text.chars().map(Pressed::Char).collect::<Vec<_>>();
    press(&mut board, &typed("/50002x"));
    press(&mut board, &[Pressed::Backspace]);
    assert_eq!(ids(&mut board), [Key::Number(2)]);
    assert_eq!(press(&mut board, &typed("q")), None, "a letter as any");
    press(&mut board, &[Pressed::Backspace, Pressed::Char('\n')]);
    assert!(!board.is_typing);
    press(&mut board, &[Pressed::Char('3')]);
    assert_eq!(ids(&mut board).len(), 1, "of the listeners");
    press(&mut board, &[Pressed::BackTab, Pressed::BackTab]);
    assert_eq!((board.view, ids(&mut board).len()), (View::Connections, 1));
    press(&mut board, &[Pressed::Esc]);
    assert_eq!(ids(&mut board).len(), 3);
    press(&mut board, &typed("/nobody"));
    press(&mut board, &[Pressed::Esc]);
    assert_eq!(ids(&mut board).len(), 3);
}

#[test]
fn keys_sort_by_the_columns_in_turn_and_from_either_end() {
    let mut board = watching();
    assert_eq!(board.sorted(), Some((columns::BY_TRAFFIC, true)));
    press(&mut board, &[Pressed::Char('<'); 4]);
    assert_eq!(board.sorted(), Some((0, true)));
    assert_eq!(ids(&mut board), [3, 2, 1].map(Key::Number));
    press(&mut board, &[Pressed::Char('r')]);
    assert_eq!(ids(&mut board), [1, 2, 3].map(Key::Number));
    press(&mut board, &[Pressed::Char('<')]);
    assert_eq!(board.sorted(), Some((15, false)));
    press(&mut board, &[Pressed::Char('s'), Pressed::Char('>')]);
    assert_eq!(board.sorted(), Some((1, false)));
}

#[test]
fn what_is_held_still_does_not_change_until_it_goes_on() {
    let mut board = watching();
    press(&mut board, &[Pressed::Char(' ')]);
    assert!(!board.wants_connections());
    board.listed(Vec::new());
    board.told(
        told::status_with(&json!({"open": 0, "counted_for": 61.0})),
        Serves::Still,
        NOW,
        1000,
    );
    assert_eq!((board.status.open, ids(&mut board).len()), (3, 3));
    press(&mut board, &[Pressed::Char(' ')]);
    board.told(
        told::status_with(&json!({"open": 0, "counted_for": 62.0})),
        Serves::Still,
        NOW,
        1000,
    );
    assert_eq!(board.status.open, 0);
}

#[test]
fn those_that_ended_are_kept_over_takeovers_the_last_first() {
    let ended = |ids: &[u64]| {
        let ended = ids.iter();
        let ended = ended.map(|id| told::ended(*id, CloseReason::PeerClosed));
        serde_json::to_value(ended.collect::<Vec<_>>()).unwrap()
    };
    let mut board = board(&json!({"ended": ended(&[2, 1])}));
    board.view = View::Ended;
    assert_eq!(ids(&mut board), [2, 1].map(Key::Number));
    let later = NOW + Duration::from_secs(10);
    let next = json!({"pid": 37, "counted_for": 70.0, "ended": ended(&[3])});
    board.told(told::status_with(&next), Serves::Successor, later, 1000);
    assert_eq!(ids(&mut board), [3, 2, 1].map(Key::Number));
    let ago: Vec<u64> = board
        .ended_shown
        .iter()
        .map(|end| end.ago.as_secs())
        .collect();
    assert_eq!(ago, [3, 13, 13]);
    let many = json!({"pid": 37, "counted_for": 71.0, "ended": ended(&(4..104).rev().collect::<Vec<_>>())});
    board.told(told::status_with(&many), Serves::Still, later, 1000);
    assert_eq!(ids(&mut board).len(), ENDED_MOST);
}

#[test]
fn all_of_a_row_is_shown_also_when_it_has_ended() {
    let mut board = watching();
    press(
        &mut board,
        &[Pressed::Down, Pressed::Down, Pressed::Char('\n')],
    );
    let key = board.details.clone().unwrap();
    let fact = |board: &Dashboard, name: &str| {
        let mut told = board.details_of(&key).into_iter();
        told.find(|(title, _)| *title == name)
            .map(|(_, value)| value)
    };
    assert_eq!(fact(&board, "peer").as_deref(), Some("127.0.0.1:50002"));
    let ended = [told::ended(2, CloseReason::Killed)];
    board.listed(Vec::new());
    board.told(
        told::status_with(&json!({"ended": ended})),
        Serves::Still,
        NOW,
        1000,
    );
    board.arranged();
    assert_eq!(fact(&board, "reason").as_deref(), Some("killed"));
    // It is nobody who could be killed.
    assert_eq!(press(&mut board, &[Pressed::Char('k')]), None);
    assert_eq!(said(&board), "it has ended");
    press(&mut board, &[Pressed::Esc]);
    assert_eq!(board.details, None);
}

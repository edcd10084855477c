//! A file that is renamed away, a folder that goes and comes, a disk without room: whole lines, and all losses counted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::*;
use std::fs;

fn lines(numbers: std::ops::Range<u32>) -> Vec<u8> {
    numbers.map(|n| format!("line {n}\n")).collect::<String>().into_bytes()
}

#[test]
fn a_file_that_is_renamed_or_removed_is_made_anew_at_the_next_lines() {
    let folder = tempfile::tempdir().unwrap();
    let (path, old) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
    let mut sink = Sink::file(path.clone()).unwrap();
    sink.append(&mut lines(0..2)).unwrap();
    fs::rename(&path, &old).unwrap();
    sink.append(&mut lines(2..4)).unwrap();
    assert_eq!(fs::read(&old).unwrap(), lines(0..2));
    assert_eq!(fs::read(&path).unwrap(), lines(2..4));
    fs::remove_file(&path).unwrap();
    sink.append(&mut lines(4..5)).unwrap();
    // Logrotate's `copytruncate` needs nothing: the file is the same, and lines are appended.
    fs::write(&path, "").unwrap();
    sink.append(&mut lines(5..6)).unwrap();
    assert_eq!(fs::read(&path).unwrap(), lines(5..6));
}

#[test]
fn while_the_folder_is_gone_lines_stay_with_the_caller_and_go_on_when_it_is_back() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("logs");
    fs::create_dir(&folder).unwrap();
    let path = folder.join("access.log");
    let mut sink = Sink::file(path.clone()).unwrap();
    sink.append(&mut lines(0..2)).unwrap();
    fs::remove_dir_all(&folder).unwrap();
    let mut text = lines(2..5);
    for _ in 0..2 {
        assert_eq!(sink.append(&mut text).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(text, lines(2..5));
    }
    assert_eq!(sink.drop_lines(&mut text), 3);
    assert!(text.is_empty());
    fs::create_dir(&folder).unwrap();
    sink.append(&mut lines(5..6)).unwrap();
    assert_eq!(fs::read(&path).unwrap(), lines(5..6));
}

/// A file that takes so many bytes and no more: a pipe that nobody blocks on.
fn small_pipe() -> (io::PipeReader, Sink, usize) {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let (reader, writer) = io::pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let sink = Sink { path: None, file: Some(File::from(std::os::fd::OwnedFd::from(writer))), begun: 0 };
    (reader, sink, 4096)
}

#[test]
fn a_line_that_was_begun_is_gone_on_with_and_the_others_are_counted() {
    use std::io::Read;
    let (mut reader, mut sink, room) = small_pipe();
    let line = [vec![b'x'; 999], vec![b'\n']].concat();
    let mut text = line.repeat(7);
    assert_eq!(sink.append(&mut text).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert_eq!((text.len(), sink.begun), (3000, room - 4000), "four are whole, one is begun");
    assert_eq!(sink.drop_lines(&mut text), 2);
    assert_eq!(text, line, "the one that was begun stays, whole");
    let mut seen = vec![0; room];
    reader.read_exact(&mut seen).unwrap();
    text.extend_from_slice(b"last\n");
    sink.append(&mut text).unwrap();
    assert!(text.is_empty());
    drop(sink);
    reader.read_to_end(&mut seen).unwrap();
    assert_eq!(seen, [line.repeat(5), b"last\n".to_vec()].concat());
}

#[test]
fn a_line_that_was_begun_in_a_file_that_is_gone_is_whole_in_the_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let mut sink = Sink::file(path.clone()).unwrap();
    sink.begun = 3;
    fs::rename(&path, folder.path().join("access.log.1")).unwrap();
    sink.append(&mut lines(0..1)).unwrap();
    assert_eq!(fs::read(&path).unwrap(), lines(0..1));
}

#[test]
fn a_full_disk_is_an_error_and_nothing_of_the_lines_is_taken() {
    let mut sink = Sink::file("/dev/full".into()).unwrap();
    let mut text = lines(0..3);
    assert_eq!(sink.append(&mut text).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(sink.drop_lines(&mut text), 3);
}

//! stdout, written by a thread of its own: a reader that stops reading must neither keep the agent
//! from its ring nor from ending when it is told to.

use std::{
    io::{self, Write as _},
    mem,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, channel, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

/// What a buffer keeps of its memory when it is empty.
const USUAL_BYTES: usize = 4 << 20;

/// Hands buffers to the thread that writes them, one at a time.
#[derive(Debug)]
pub struct Writer {
    full: SyncSender<Arc<Vec<u8>>>,
    written: Receiver<io::Result<()>>,
    other: Other,
}

/// The buffer that is not the one being filled.
#[derive(Debug)]
enum Other {
    /// To go on with, as soon as there is something to write.
    Spare(Vec<u8>),
    /// Being written. Shared, to tell what is in it if that never ends.
    UnderWay(Arc<Vec<u8>>),
}

impl Writer {
    /// Starts the thread.
    ///
    /// # Errors
    /// If there can be no further thread.
    pub fn start() -> io::Result<Self> {
        let (full, to_write) = sync_channel::<Arc<Vec<u8>>>(1);
        let (done, written) = channel();
        // Not joined: it may be stuck in a write for ever, and ends with the process.
        thread::Builder::new().name("portlife-stdout".to_owned()).spawn(move || {
            for buffer in to_write {
                let mut stdout = io::stdout().lock();
                let result = stdout.write_all(&buffer).and_then(|()| stdout.flush());
                // Given back before that is told.
                drop(buffer);
                if done.send(result).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { full, written, other: Other::Spare(Vec::new()) })
    }

    /// Begins to write what is in the buffer and empties it, unless the last writing goes on.
    ///
    /// # Errors
    /// If an earlier writing has failed.
    pub fn flush(&mut self, buffer: &mut Vec<u8>) -> io::Result<()> {
        if let Other::UnderWay(_) = self.other {
            match self.written.try_recv() {
                Ok(result) => self.is_written(result)?,
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
        if !buffer.is_empty()
            && let Other::Spare(spare) = &mut self.other
        {
            let full = Arc::new(mem::replace(buffer, mem::take(spare)));
            self.other = Other::UnderWay(Arc::clone(&full));
            self.full.send(full).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        }
        Ok(())
    }

    /// Writes what is left, as long as the reader takes it within `patience`. Returns how many
    /// records it did not take, not counting off those that it took of an unfinished writing.
    ///
    /// # Errors
    /// If a writing fails.
    pub fn finish(&mut self, buffer: &mut Vec<u8>, patience: Duration) -> io::Result<usize> {
        let deadline = Instant::now() + patience;
        loop {
            self.flush(buffer)?;
            let Other::UnderWay(under_way) = &self.other else { return Ok(0) };
            let left = deadline.saturating_duration_since(Instant::now());
            match self.written.recv_timeout(left) {
                Ok(result) => self.is_written(result)?,
                Err(RecvTimeoutError::Timeout) => {
                    return Ok(records_in(under_way) + records_in(buffer));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
            }
        }
    }

    fn is_written(&mut self, result: io::Result<()>) -> io::Result<()> {
        if let Other::UnderWay(buffer) = &mut self.other {
            let mut emptied = mem::take(Arc::make_mut(buffer));
            emptied.clear();
            // Only a reader that stalls, or the first snapshot, makes it grow beyond.
            emptied.shrink_to(USUAL_BYTES);
            self.other = Other::Spare(emptied);
        }
        result
    }
}

/// Each record is a line.
fn records_in(buffer: &[u8]) -> usize {
    buffer.iter().filter(|byte| **byte == b'\n').count()
}

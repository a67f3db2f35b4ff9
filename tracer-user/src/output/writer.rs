//! stdout, written by a thread of its own: a reader that stops reading must neither keep the agent
//! from its ring nor from ending when it is told to.

use std::{
    io::{self, Write as _},
    mem,
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, channel, sync_channel},
    thread,
    time::{Duration, Instant},
};

/// What a buffer keeps of its memory when it is empty.
const USUAL_BYTES: usize = 4 << 20;

/// Hands buffers to the thread that writes them, one at a time.
#[derive(Debug)]
pub struct Writer {
    full: SyncSender<Vec<u8>>,
    written: Receiver<io::Result<Vec<u8>>>,
    /// Records in the buffer that is being written.
    under_way: usize,
    /// A buffer to go on with while the other is being written; `None` while both are in use.
    spare: Option<Vec<u8>>,
}

impl Writer {
    /// Starts the thread.
    ///
    /// # Errors
    /// If there can be no further thread.
    pub fn start() -> io::Result<Self> {
        let (full, to_write) = sync_channel::<Vec<u8>>(1);
        let (done, written) = channel();
        // Not joined: it may be stuck in a write for ever, and ends with the process.
        thread::Builder::new().name("portlife-stdout".to_owned()).spawn(move || {
            for mut buffer in to_write {
                let mut stdout = io::stdout().lock();
                let result = stdout.write_all(&buffer).and_then(|()| stdout.flush());
                buffer.clear();
                // Only a reader that stalls, or the first snapshot, makes it grow beyond.
                buffer.shrink_to(USUAL_BYTES);
                if done.send(result.map(|()| buffer)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { full, written, under_way: 0, spare: Some(Vec::new()) })
    }

    /// Begins to write what is in the buffer and empties it, unless the last writing goes on.
    ///
    /// # Errors
    /// If an earlier writing has failed.
    pub fn flush(&mut self, buffer: &mut Vec<u8>) -> io::Result<()> {
        if self.spare.is_none() {
            match self.written.try_recv() {
                Ok(result) => self.is_written(result?),
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
        if !buffer.is_empty()
            && let Some(spare) = self.spare.take()
        {
            let full = mem::replace(buffer, spare);
            self.under_way = records_in(&full);
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
            if self.spare.is_some() {
                return Ok(0);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.written.recv_timeout(left) {
                Ok(result) => self.is_written(result?),
                Err(RecvTimeoutError::Timeout) => {
                    return Ok(self.under_way + records_in(buffer));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
            }
        }
    }

    fn is_written(&mut self, emptied: Vec<u8>) {
        self.under_way = 0;
        self.spare = Some(emptied);
    }
}

/// Each record is a line.
fn records_in(buffer: &[u8]) -> usize {
    buffer.iter().filter(|byte| **byte == b'\n').count()
}

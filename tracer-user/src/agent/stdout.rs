//! Writes to stdout in a thread of its own, so that a reader that stops reading keeps the agent
//! neither from draining the ring nor from ending.

use std::{
    collections::VecDeque,
    io::{self, Write as _},
    mem,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use tokio::sync::mpsc::{UnboundedReceiver, error::TryRecvError, unbounded_channel};

/// Maximum capacity in bytes that an empty buffer keeps.
const USUAL_BYTES: usize = 4 << 20;
/// While a chunk is being written, records are collected into chunks of this number of bytes.
const CHUNK_BYTES: usize = 1 << 20;
/// Bytes in one write: the capacity of a pipe, so that progress can be observed.
const WRITE_BYTES: usize = 64 << 10;

/// Hands chunks of whole records to the thread that writes them, one at a time.
#[derive(Debug)]
pub(crate) struct Stdout {
    to_write: SyncSender<Arc<Chunk>>,
    written: UnboundedReceiver<io::Result<()>>,
    under_way: Option<Arc<Chunk>>,
    /// Chunks that wait for their turn, the oldest first.
    waiting: VecDeque<Vec<u8>>,
    waiting_bytes: usize,
    /// Number of bytes in all chunks that were written.
    written_bytes: u64,
    /// An empty buffer for reuse.
    spare: Vec<u8>,
}

/// Records that are being written. Shared, so that the rest is known if the write never returns.
#[derive(Debug, Default)]
struct Chunk {
    bytes: Vec<u8>,
    written_bytes: AtomicUsize,
}

impl Chunk {
    fn left(&self) -> &[u8] {
        // The count is approximate until the thread has written the chunk.
        &self.bytes[self.written_bytes.load(Ordering::Relaxed)..]
    }

    fn write(&self) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        for bytes in self.bytes.chunks(WRITE_BYTES) {
            stdout.write_all(bytes)?;
            self.written_bytes.fetch_add(bytes.len(), Ordering::Relaxed);
        }
        stdout.flush()
    }
}

impl Stdout {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start() -> io::Result<Self> {
        let (to_write, chunks) = sync_channel::<Arc<Chunk>>(1);
        let (done, written) = unbounded_channel();
        // Not joined: it may be blocked in a write for ever. It ends with the process.
        thread::Builder::new().name("portlife-stdout".to_owned()).spawn(move || {
            for chunk in chunks {
                let result = chunk.write();
                // The buffer must be back before the chunk is reported as written.
                drop(chunk);
                if done.send(result).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self {
            to_write,
            written,
            under_way: None,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            written_bytes: 0,
            spare: Vec::new(),
        })
    }

    /// Takes the records of the buffer, and begins to write them unless others are being written.
    /// May leave some in the buffer until there are enough for a chunk.
    ///
    /// # Errors
    /// If an earlier write has failed.
    pub fn flush(&mut self, buffer: &mut Vec<u8>) -> io::Result<()> {
        if self.under_way.is_some() {
            match self.written.try_recv() {
                Ok(result) => self.is_written(result)?,
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
        if self.under_way.is_some() {
            if buffer.len() >= CHUNK_BYTES {
                self.waiting_bytes += buffer.len();
                self.waiting.push_back(mem::take(buffer));
            }
        } else if let Some(chunk) = self.waiting.pop_front() {
            self.waiting_bytes -= chunk.len();
            self.begin(chunk)?;
        } else if !buffer.is_empty() {
            let spare = mem::take(&mut self.spare);
            self.begin(mem::replace(buffer, spare))?;
        }
        Ok(())
    }

    /// Waits until the chunk that is being written is written. Waits for ever if there is none.
    /// Cancelling this loses nothing.
    ///
    /// # Errors
    /// If the write has failed.
    pub async fn written(&mut self) -> io::Result<()> {
        if self.under_way.is_none() {
            return std::future::pending().await;
        }
        let result = self.written.recv().await;
        self.is_written(result.unwrap_or_else(|| Err(io::ErrorKind::BrokenPipe.into())))
    }

    /// Writes all chunks that wait, and the buffer. With a `patience`, gives up when the reader has
    /// read nothing for this time.
    ///
    /// # Errors
    /// If a write fails.
    pub async fn finish(
        &mut self,
        buffer: &mut Vec<u8>,
        patience: Option<Duration>,
    ) -> io::Result<()> {
        loop {
            self.flush(buffer)?;
            let Some(under_way) = self.under_way.clone() else { return Ok(()) };
            let before = under_way.left().len();
            let Some(patience) = patience else {
                self.written().await?;
                continue;
            };
            match tokio::time::timeout(patience, self.written()).await {
                Ok(result) => result?,
                Err(_) if under_way.left().len() < before => {}
                Err(_) => return Ok(()),
            }
        }
    }

    /// Number of records that were not written.
    pub fn unwritten_records(&self, buffer: &[u8]) -> usize {
        let under_way = self.under_way.iter().map(|chunk| chunk.left());
        let waiting = self.waiting.iter().map(Vec::as_slice);
        under_way.chain(waiting).chain([buffer]).map(records_in).sum()
    }

    /// Number of bytes that wait to be written, without those in the buffer.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes + self.under_way.as_ref().map_or(0, |chunk| chunk.left().len())
    }

    /// Number of bytes written since the start.
    pub fn written_bytes(&self) -> u64 {
        let of_chunk =
            self.under_way.as_ref().map_or(0, |chunk| chunk.written_bytes.load(Ordering::Relaxed));
        self.written_bytes + of_chunk as u64
    }

    fn begin(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        let chunk = Arc::new(Chunk { bytes, written_bytes: AtomicUsize::new(0) });
        self.under_way = Some(Arc::clone(&chunk));
        self.to_write.send(chunk).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn is_written(&mut self, result: io::Result<()>) -> io::Result<()> {
        if let Some(chunk) = self.under_way.take() {
            self.written_bytes += chunk.bytes.len() as u64;
            if let Ok(Chunk { mut bytes, .. }) = Arc::try_unwrap(chunk) {
                bytes.clear();
                // Only a slow reader or the first snapshot makes it grow larger.
                bytes.shrink_to(USUAL_BYTES);
                self.spare = bytes;
            }
        }
        result
    }
}

/// Each record is a line.
fn records_in(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte == b'\n').count()
}

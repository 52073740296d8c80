//! Owns a bucket that outlives the processes which write to it, and kills one of them
//! at a chosen request that changes something: before it takes effect, after it did and
//! before it is answered, or a moment after the answer. It speaks S3's protocol on a
//! port of loopback; what lies in it can be read, copied and put back beside the
//! protocol.

mod s3;

use std::fmt;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::BoxFuture;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use tempfile::NamedTempFile;
use tierd::store::ObjectKey;
use tokio::sync::watch;

use crate::counting::Op;
use crate::process::Ended;

/// Name of the bucket.
const BUCKET: &str = "bucket";
/// How often it is looked whether a process still lives.
const LOOK: Duration = Duration::from_millis(2);

/// When a process is killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kill {
    /// At which request of its life that changes something, from 1.
    pub at: u64,
    /// Of those that are this step; of all where it is none.
    pub of: Option<String>,
    /// On which side of it.
    pub when: When,
}

/// On which side of a request a process is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// The request takes no effect.
    Before,
    /// The request took effect and is not answered.
    After,
    /// The request was answered this long ago.
    Later(Duration),
}

impl Kill {
    /// Whether the last of `writes` is the one.
    fn is_now(&self, writes: &[String]) -> bool {
        let is_counted = |step: &&String| self.of.as_ref().is_none_or(|of| of == *step);
        writes.last().filter(is_counted).is_some()
            && writes.iter().filter(is_counted).count() as u64 == self.at
    }
}

/// Something that happens in the bucket right before a request is looked at.
type Interlude = Box<dyn FnOnce(Arc<dyn ObjectStore>) -> BoxFuture<'static, ()> + Send>;

/// A bucket.
#[derive(Debug)]
pub struct Bucket {
    inner: Arc<Inner>,
    port: u16,
    _runtime: tokio::runtime::Runtime,
}

struct Inner {
    objects: Mutex<Arc<InMemory>>,
    uploads: Mutex<s3::Uploads>,
    life: Mutex<Life>,
    /// The process at work. Who sends requests is in here before the first.
    victim: Mutex<Option<Child>>,
    /// Number of the life that is lived; requests of earlier ones are nobody's.
    lives: watch::Sender<u64>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("life", &*self.life()).finish_non_exhaustive()
    }
}

/// What one process did.
#[derive(Default)]
struct Life {
    number: u64,
    kill: Option<Kill>,
    writes: Vec<String>,
    killed: bool,
    interlude: Option<(&'static str, Interlude)>,
}

impl fmt::Debug for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Life").field("kill", &self.kill).field("writes", &self.writes).finish()
    }
}

/// What becomes of a request.
enum Fate {
    /// It is answered.
    Lives,
    /// It is answered, and soon after the process is killed.
    DiesLater(Duration),
    /// It takes effect and is not answered.
    DiesAfter,
    /// It takes no effect.
    DiesBefore,
    /// Its process is dead.
    Dead,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request that changes something as a step: what is done to which sort of object.
///
/// # Errors
/// When the object is none of tierd's.
fn step(op: Op, path: &str) -> Result<String> {
    let key = ObjectKey::decode(path).with_context(|| path.to_owned())?;
    // The sort of an object is the variant of its name.
    let sort: String = format!("{key:?}").chars().take_while(|c| c.is_alphanumeric()).collect();
    Ok(format!("{op:?} {sort}"))
}

impl Inner {
    fn life(&self) -> MutexGuard<'_, Life> {
        locked(&self.life)
    }

    fn objects(&self) -> Arc<InMemory> {
        Arc::clone(&locked(&self.objects))
    }

    fn begin(&self, kill: Option<Kill>) {
        let mut life = self.life();
        let (number, interlude) = (life.number + 1, life.interlude.take());
        *life = Life { number, kill, interlude, ..Life::default() };
        self.lives.send_replace(number);
    }

    /// A request that only reads came.
    fn read(&self) -> Fate {
        if self.life().killed { Fate::Dead } else { Fate::Lives }
    }

    /// A request that changes something came.
    async fn write(&self, step: String) -> Fate {
        let interlude = {
            let mut life = self.life();
            let killed = life.killed;
            life.interlude.take_if(|(at, _)| !killed && *at == step)
        };
        if let Some((_, interlude)) = interlude {
            interlude(self.objects()).await;
        }
        let mut life = self.life();
        if life.killed {
            return Fate::Dead;
        }
        life.writes.push(step);
        match life.kill.as_ref().filter(|kill| kill.is_now(&life.writes)).map(|kill| kill.when) {
            Some(When::Later(wait)) => Fate::DiesLater(wait),
            Some(When::Before) => {
                life.killed = true;
                Fate::DiesBefore
            }
            Some(When::After) => {
                life.killed = true;
                Fate::DiesAfter
            }
            None => Fate::Lives,
        }
    }

    /// SIGKILL of the process that lives now, if it is the one of number `of`.
    fn kill(&self, of: u64) {
        let mut life = self.life();
        if life.number != of {
            return;
        }
        life.killed = true;
        if let Some(child) = &mut *locked(&self.victim) {
            // It may have come to its end.
            let _ = child.kill();
        }
    }

    /// As [`Self::kill`], a moment from now.
    fn kill_later(self: &Arc<Self>, of: u64, wait: Duration) {
        let inner = Arc::clone(self);
        std::thread::spawn(move || {
            std::thread::sleep(wait);
            inner.kill(of);
        });
    }

    /// Until a process after number `of` begins.
    async fn never(&self, of: u64) {
        // Or the bucket is gone.
        let _ = self.lives.subscribe().wait_for(|now| *now > of).await;
    }
}

impl Bucket {
    /// An empty bucket.
    ///
    /// # Errors
    /// When no port is free.
    pub fn start() -> Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let inner = Arc::new(Inner {
            objects: Mutex::default(),
            uploads: Mutex::default(),
            life: Mutex::default(),
            victim: Mutex::default(),
            lives: watch::channel(0).0,
        });
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        runtime.spawn(s3::serve(listener, Arc::clone(&inner)));
        Ok(Self { inner, port, _runtime: runtime })
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("s3://{BUCKET}")
    }

    /// Where it is, as a process's environment tells.
    #[must_use]
    pub fn environment(&self) -> Vec<(String, String)> {
        let endpoint = format!("http://127.0.0.1:{}", self.port);
        [
            ("AWS_ENDPOINT_URL", endpoint.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_ACCESS_KEY_ID", "anybody"),
            ("AWS_SECRET_ACCESS_KEY", "anything"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }

    /// What lies in it.
    #[must_use]
    pub fn objects(&self) -> Arc<dyn ObjectStore> {
        self.inner.objects()
    }

    /// How many uploads were begun and neither ended nor given up.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        locked(&self.inner.uploads).open.len()
    }

    /// A copy of what lies in it.
    #[must_use]
    pub fn copy(&self) -> InMemory {
        self.inner.objects().fork()
    }

    /// Puts a copy of `objects` in the place of what lies in it.
    pub fn restore(&self, objects: &InMemory) {
        *locked(&self.inner.objects) = Arc::new(objects.fork());
        locked(&self.inner.uploads).open.clear();
    }

    /// Lets something happen in the bucket right before the next process's first
    /// request of the sort `step` is looked at.
    pub fn interpose(
        &self,
        step: &'static str,
        interlude: impl FnOnce(Arc<dyn ObjectStore>) -> BoxFuture<'static, ()> + Send + 'static,
    ) {
        self.inner.life().interlude = Some((step, Box::new(interlude)));
    }

    /// Starts a process, the only one, that is killed at `kill`.
    ///
    /// # Errors
    /// When it does not start.
    pub fn run(&self, mut command: Command, kill: Option<Kill>) -> Result<Running<'_>> {
        let (stdout, stderr) = (NamedTempFile::new()?, NamedTempFile::new()?);
        command.stdout(Stdio::from(stdout.reopen()?)).stderr(Stdio::from(stderr.reopen()?));
        self.inner.begin(kill);
        // Whoever serves its first request waits for this lock before it kills.
        let mut victim = locked(&self.inner.victim);
        *victim = Some(command.spawn()?);
        drop(victim);
        Ok(Running { inner: &self.inner, stdout, stderr })
    }
}

/// A process at work on a bucket; killed when dropped.
#[derive(Debug)]
pub struct Running<'a> {
    inner: &'a Arc<Inner>,
    stdout: NamedTempFile,
    stderr: NamedTempFile,
}

/// How a process came to its end.
#[derive(Debug)]
pub struct Lived {
    /// What it printed, and its exit code.
    pub ended: Ended,
    /// Whether it was killed.
    pub killed: bool,
    /// Its requests that changed something, as steps, in order of arrival.
    pub writes: Vec<String>,
}

impl Running<'_> {
    /// Whether it still runs.
    #[must_use]
    pub fn lives(&self) -> bool {
        let mut victim = locked(&self.inner.victim);
        victim.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// What follows `prefix` on the first line of its output that begins so.
    #[must_use]
    pub fn said(&self, prefix: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.stdout.path()).unwrap_or_default();
        text.lines().find_map(|line| Some(line.strip_prefix(prefix)?.to_owned()))
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        let id = locked(&self.inner.victim).as_ref().map(Child::id);
        let kill = Command::new("kill").arg(id.unwrap_or_default().to_string()).status();
        assert!(kill.is_ok_and(|status| status.success()), "no signal reached the process");
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When what it printed cannot be read.
    pub fn wait(self) -> Result<Lived> {
        while self.lives() {
            std::thread::sleep(LOOK);
        }
        let child = locked(&self.inner.victim).take();
        let status = child.context("it was waited for")?.wait()?;
        let stdout = std::fs::read(self.stdout.path())?;
        let stderr = String::from_utf8_lossy(&std::fs::read(self.stderr.path())?).into_owned();
        let ended = Ended { code: status.code().unwrap_or(-1), stdout, stderr };
        let mut life = self.inner.life();
        let killed = life.killed && ended.code == -1;
        Ok(Lived { ended, killed, writes: std::mem::take(&mut life.writes) })
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = locked(&self.inner.victim).take() {
            // It may have ended by itself; either way it is reaped.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

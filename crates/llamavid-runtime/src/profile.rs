//! Where time goes: what each thread does and when, on one clock.
//!
//! Work in Rust says so with the spans of the crate `tracing`, which cost nothing while nobody records. Work elsewhere is told when
//! it has ended ([`record_work`], [`record_phase`]). What was recorded comes in Chrome's Trace Event Format, which Perfetto opens.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id};
use tracing::{Subscriber, subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};
use tracing_subscriber::reload;

use crate::{Error, ErrorCode, Result};

/// Spans that are kept one by one, some 60 MB of JSON; of later ones only the sums are.
const MOST_EVENTS: usize = 1 << 19;
/// More than it takes to tell that a phase has ended.
const TELLING: Duration = Duration::from_micros(500);

/// One recording at a time in a process.
static RECORDING: Mutex<Option<Recording>> = Mutex::new(None);

#[derive(Debug)]
struct Recording {
    began: Instant,
    events: Vec<Event>,
    dropped: usize,
    /// What each kind of span took, and what each part of the whole did.
    spans: BTreeMap<String, Sum>,
    phases: BTreeMap<String, Duration>,
    /// The lines in which spans are shown, by their number.
    lanes: Vec<Lane>,
}

/// An event by the names of Chrome's format; times are microseconds from the beginning.
#[derive(Debug, Serialize)]
struct Event {
    name: Cow<'static, str>,
    cat: &'static str,
    ph: char,
    ts: f64,
    dur: f64,
    pid: u32,
    tid: usize,
    args: Map<String, Value>,
}

/// The whole file.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Trace {
    summary: Value,
    display_time_unit: &'static str,
    trace_events: Vec<Event>,
}

#[derive(Debug)]
enum Lane {
    /// Phases, of which the last one ended then: what overlaps it is in another line.
    Phases(Instant),
    /// The work of a thread, whose spans nest.
    Thread(ThreadId, String),
}

#[derive(Debug, Default)]
struct Sum {
    count: usize,
    total: Duration,
}

/// Begins to record. `earlier` is how long ago the time that is profiled began: that of the process, say.
///
/// # Errors
/// `INVALID_ARGUMENT` while a recording goes on, `INTERNAL` in a program that has a subscriber of `tracing` of its own.
pub fn start_profile(earlier: Duration) -> Result<()> {
    let mut recording = lock();
    if recording.is_some() {
        return Err(Error::argument("a profile is recorded already: finish it first"));
    }
    set_level(LevelFilter::INFO)?;
    let now = Instant::now();
    *recording = Some(Recording {
        began: now.checked_sub(earlier).unwrap_or(now),
        events: Vec::new(),
        dropped: 0,
        spans: BTreeMap::new(),
        phases: BTreeMap::new(),
        lanes: Vec::new(),
    });
    Ok(())
}

/// Ends the recording and gives the trace as JSON. Beside `traceEvents` it has a `summary`: `wallMs`; `phases`, milliseconds of
/// the parts that follow each other, and `otherMs`, what is left; `spans`, how often each kind of work was done and what it took,
/// of all threads together.
///
/// # Errors
/// `INVALID_ARGUMENT` when nothing is recorded.
pub fn finish_profile() -> Result<String> {
    let recording = lock().take();
    set_level(LevelFilter::OFF)?;
    let recording = recording.ok_or_else(|| Error::argument("no profile is recorded: start one first"))?;
    serde_json::to_string(&recording.trace())
        .map_err(|error| Error::new(ErrorCode::Internal, format!("the profile cannot be written: {error}")))
}

/// Records a part of the whole that has just ended and lasted so long. Does nothing while nobody records.
pub fn record_phase(name: &str, lasted: Duration) {
    if let Some(recording) = lock().as_mut() {
        let end = Instant::now();
        *recording.phases.entry(name.to_owned()).or_default() += lasted;
        let (lane, start) = recording.free_lane(end.checked_sub(lasted).unwrap_or(end), end);
        recording.push(name.to_owned().into(), "phase", lane, start, end - start, Map::new());
    }
}

/// Records work of the calling thread that has just ended and lasted so long. Does nothing while nobody records.
pub fn record_work(name: &str, lasted: Duration) {
    if let Some(recording) = lock().as_mut() {
        let now = Instant::now();
        let start = now.checked_sub(lasted).unwrap_or(now);
        recording.worked(name.to_owned().into(), start, lasted, Map::new());
    }
}

impl Recording {
    /// The number of a line that is free for a phase, and where in it the phase begins: one that follows another may seem to begin
    /// before that one has ended, by as long as telling took.
    fn free_lane(&mut self, start: Instant, end: Instant) -> (usize, Instant) {
        let found = self.lanes.iter().enumerate().find_map(|(number, lane)| match lane {
            Lane::Phases(last) if *last <= start + TELLING => Some((number, start.max(*last))),
            _ => None,
        });
        match found {
            Some((number, _)) => self.lanes[number] = Lane::Phases(end),
            None => self.lanes.push(Lane::Phases(end)),
        }
        found.unwrap_or((self.lanes.len() - 1, start))
    }

    /// Adds work of the calling thread.
    fn worked(
        &mut self,
        name: Cow<'static, str>,
        start: Instant,
        lasted: Duration,
        facts: Map<String, Value>,
    ) {
        let sum = self.spans.entry(name.to_string()).or_default();
        sum.count += 1;
        sum.total += lasted;
        let thread = thread::current();
        let is_own = |lane: &Lane| matches!(lane, Lane::Thread(id, _) if *id == thread.id());
        let number = self.lanes.iter().position(is_own).unwrap_or_else(|| {
            let name = thread.name().unwrap_or("thread of Node").to_owned();
            self.lanes.push(Lane::Thread(thread.id(), name));
            self.lanes.len() - 1
        });
        self.push(name, "work", number, start, lasted, facts);
    }

    fn push(
        &mut self,
        name: Cow<'static, str>,
        cat: &'static str,
        tid: usize,
        start: Instant,
        lasted: Duration,
        args: Map<String, Value>,
    ) {
        if self.events.len() == MOST_EVENTS {
            self.dropped += 1;
            return;
        }
        let ts = microseconds(start.saturating_duration_since(self.began));
        self.events.push(Event { name, cat, ph: 'X', ts, dur: microseconds(lasted), pid: 1, tid, args });
    }

    fn trace(self) -> Trace {
        let wall = self.began.elapsed();
        let phases: Duration = self.phases.values().sum();
        let names = self.lanes.into_iter().enumerate().map(|(tid, lane)| {
            let name = match lane {
                Lane::Phases(_) => "phases".to_owned(),
                Lane::Thread(_, name) => name,
            };
            let args = Map::from_iter([("name".to_owned(), name.into())]);
            Event { name: "thread_name".into(), cat: "", ph: 'M', ts: 0., dur: 0., pid: 1, tid, args }
        });
        let trace_events = names.chain(self.events).collect();
        let spans = self.spans.iter().map(|(name, sum)| {
            (name.clone(), json!({ "count": sum.count, "totalMs": milliseconds(sum.total) }))
        });
        let each = self.phases.iter().map(|(name, total)| (name.clone(), milliseconds(*total).into()));
        let summary = json!({
            "wallMs": milliseconds(wall),
            "phases": each.collect::<Map<_, _>>(),
            "otherMs": milliseconds(wall.saturating_sub(phases)),
            "spans": spans.collect::<Map<_, _>>(),
            "droppedEvents": self.dropped,
        });
        Trace { summary, display_time_unit: "ms", trace_events }
    }
}

fn lock() -> MutexGuard<'static, Option<Recording>> {
    // A panic elsewhere leaves whole events.
    RECORDING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn microseconds(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1e3
}

fn milliseconds(duration: Duration) -> f64 {
    (microseconds(duration)).round() / 1e3
}

/// Which spans are seen. The first call sets this process's subscriber.
fn set_level(level: LevelFilter) -> Result<()> {
    static FILTER: OnceLock<Option<reload::Handle<LevelFilter, Registry>>> = OnceLock::new();
    let filter = FILTER.get_or_init(|| {
        let (filter, handle) = reload::Layer::new(LevelFilter::OFF);
        subscriber::set_global_default(Registry::default().with(filter).with(Recorder)).ok().map(|()| handle)
    });
    let changed = filter.as_ref().map(|filter| filter.reload(level));
    match changed {
        Some(Ok(())) => Ok(()),
        _ => Err(Error::new(ErrorCode::Internal, "this program has a subscriber of `tracing` already")),
    }
}

/// Turns spans that end into events.
struct Recorder;

/// When a span was entered.
struct Entered(Instant);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recorder {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut facts = Facts(Map::new());
            attributes.record(&mut facts);
            span.extensions_mut().insert(facts);
        }
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            span.extensions_mut().replace(Entered(Instant::now()));
        }
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let end = Instant::now();
        let mut extensions = span.extensions_mut();
        let Some(Entered(start)) = extensions.remove() else { return };
        let facts =
            extensions.get_mut::<Facts>().map(|facts| std::mem::take(&mut facts.0)).unwrap_or_default();
        if let Some(recording) = lock().as_mut() {
            recording.worked(span.name().into(), start, end.duration_since(start), facts);
        }
    }
}

/// What a span says beside its name.
struct Facts(Map<String, Value>);

impl Visit for Facts {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}").into());
    }
}

#[cfg(test)]
mod tests {
    use tracing::info_span;

    use super::*;

    /// One test, because there is one recording in a process; other tests add spans of theirs to it.
    #[test]
    fn a_recording_from_start_to_end() {
        assert_eq!(finish_profile().unwrap_err().code, ErrorCode::InvalidArgument);
        drop(info_span!("before").entered());
        record_phase("before", Duration::from_millis(1));

        start_profile(Duration::from_millis(50)).unwrap();
        assert_eq!(start_profile(Duration::ZERO).unwrap_err().code, ErrorCode::InvalidArgument);
        record_phase("start", Duration::from_millis(50));
        let worker = thread::Builder::new().name("device".into()).spawn(|| {
            let _outer = info_span!("outer of the test", frames = 3).entered();
            for _ in 0..2 {
                let _inner = info_span!("inner of the test").entered();
                thread::sleep(Duration::from_millis(5));
            }
        });
        worker.unwrap().join().unwrap();
        record_work("told by the test", Duration::from_millis(7));
        // Two that overlap.
        record_phase("ask", Duration::from_millis(3));
        record_phase("ask", Duration::from_millis(3));
        let trace: Value = serde_json::from_str(&finish_profile().unwrap()).unwrap();
        drop(info_span!("after").entered());

        let summary = &trace["summary"];
        assert_eq!(summary["spans"]["inner of the test"]["count"], 2);
        assert!(summary["spans"]["inner of the test"]["totalMs"].as_f64().unwrap() >= 4.);
        assert_eq!(summary["spans"]["told by the test"], json!({ "count": 1, "totalMs": 7. }));
        assert!(summary["spans"]["before"].is_null() && summary["phases"]["before"].is_null());
        assert_eq!(summary["phases"]["ask"], 6.);
        let parts = 50. + 6. + summary["otherMs"].as_f64().unwrap();
        let wall = summary["wallMs"].as_f64().unwrap();
        assert!((parts - wall).abs() < 0.01, "{parts} of {wall}");

        let events = trace["traceEvents"].as_array().unwrap();
        let named = |name: &str| -> Vec<&Value> {
            events.iter().filter(|event| event["name"] == name && event["ph"] == "X").collect()
        };
        let interval = |event: &Value| {
            let start = event["ts"].as_f64().unwrap();
            (start, start + event["dur"].as_f64().unwrap())
        };
        let [outer] = named("outer of the test")[..] else { panic!("{events:?}") };
        assert_eq!(outer["args"]["frames"], "3");
        let (start, end) = interval(outer);
        for inner in named("inner of the test") {
            assert_eq!(inner["tid"], outer["tid"]);
            assert!(start <= interval(inner).0 && interval(inner).1 <= end);
        }
        // The process began before the recording did.
        assert!(interval(named("start")[0]).0 < 50_000.);
        let [first, second] = named("ask")[..] else { panic!("{events:?}") };
        assert_ne!(first["tid"], second["tid"]);
        assert!(events.iter().any(|event| {
            event["ph"] == "M"
                && event["tid"] == outer["tid"]
                && event["args"]["name"].as_str().unwrap().starts_with("device")
        }));
    }
}

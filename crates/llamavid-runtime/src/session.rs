//! Splice, prefill and decoding as jobs of the device's thread: a session has one sequence at a time, and sessions of a
//! model decode together.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use candle_core::{DType, Tensor};
use llamavid_models::language_model::{
    CachePrecision, FinishReason, Generation, GenerationOptions, Keyword, KvCache, LanguageModelConfig,
    PREFILL_CHUNK, Prompt, RopeScaling, SamplingOptions, StopRule, Token,
};
use llamavid_models::prompt::placeholders::tokenize_with_images;
use llamavid_models::prompt::splice::{SpliceKind, splice};
use llamavid_models::tokenizer::{LlamaTokenizer, StreamDecoder, strip};
use tokio::sync::oneshot;
use tracing::info_span;

use crate::{
    Cancellation, DeviceKind, Error, ErrorCode, LanguageModel, Reply, Result, VisualTokens, catch_panic,
};

/// New tokens of one piece.
const TOKENS_A_PIECE: usize = 16;
/// After this long a piece is given out, however few its tokens are. The first token is one by itself: somebody waits for it.
const PIECE_TIME: Duration = Duration::from_millis(30);

/// What a generation starts from.
#[derive(Debug, Clone)]
pub struct GenerateRequest {
    /// The prompt, with an `<image>` where visual tokens go.
    pub prompt: String,
    /// In the order of their places.
    pub visual_tokens: Vec<Arc<VisualTokens>>,
    /// What an `<image>` stands for.
    pub layout: SpliceKind,
    /// At most this many new tokens, at least 1.
    pub max_new_tokens: usize,
    /// How ids are chosen.
    pub sampling: SamplingOptions,
    /// How the keys and values of past positions are held.
    pub cache: CachePrecision,
    /// Texts that end the answer and are not part of it. The text of a special token (`</s>`) is one too.
    pub stop: Vec<String>,
    /// Whether to keep what was read for the next start that wants that too, and to take from the last one what both begin with.
    pub keep: bool,
}

/// What is known once the prompt is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// Tokens of the prompt, visual ones included.
    pub prompt_tokens: usize,
    /// Visual tokens among them.
    pub visual_tokens: usize,
    /// Tokens that an earlier start had read.
    pub kept_tokens: usize,
}

/// A piece of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// What it adds to the text. All pieces together are the answer, without white space at its ends.
    pub text: String,
    /// The new ids, of which some may not show in the text yet.
    pub token_ids: Vec<u32>,
    /// Set with the last piece.
    pub finish: Option<FinishReason>,
}

/// Generates one answer after another. Holds a KV cache while an answer is made.
#[derive(Debug)]
pub struct Session {
    model: Arc<LanguageModel>,
    slot: Arc<Mutex<Slot>>,
}

#[derive(Debug)]
struct Slot {
    /// Grows with each start and with closing: a job of an older run gives up.
    run: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    /// No start yet, or one that failed.
    Idle,
    /// A job works on it.
    Busy,
    /// The prompt is read.
    Ready(Box<Answer>),
    /// The last piece was given out. What was read is there if it is to be kept.
    Ended(Option<Box<Answer>>),
    /// Closed for good.
    Closed,
}

impl Session {
    /// A session that has not started anything.
    pub fn new(model: Arc<LanguageModel>) -> Self {
        Self { model, slot: Arc::new(Mutex::new(Slot { run: 0, state: State::Idle })) }
    }

    /// Splices and reads a prompt. What this session worked on before is given up, but for what is to be kept of it.
    ///
    /// # Errors
    /// `CONTEXT_OVERFLOW` before the prompt is read, `INVALID_ARGUMENT` when visual tokens and places differ.
    pub fn start(&self, request: GenerateRequest, cancellation: &Cancellation) -> Result<Reply<Started>> {
        let device = self.model.device();
        for (index, tokens) in request.visual_tokens.iter().enumerate() {
            if !Arc::ptr_eq(tokens.device(), device) {
                return Err(Error::argument(format!(
                    "visual tokens {index} are on {}, the language model is on {}",
                    tokens.device().name(),
                    device.name()
                )));
            }
        }
        let (run, mut earlier) = {
            let mut slot = lock(&self.slot);
            if matches!(slot.state, State::Closed) {
                return Err(closed());
            }
            slot.run += 1;
            let earlier = match std::mem::replace(&mut slot.state, State::Busy) {
                State::Ready(answer) | State::Ended(Some(answer)) if request.keep => Some(answer),
                other => {
                    device.discard(other);
                    None
                }
            };
            (slot.run, earlier)
        };
        let mut turn = Turn { slot: self.slot.clone(), run, answer: None };
        let model = self.model.clone();
        Ok(device.run(cancellation, move |_| {
            turn.check()?;
            let answer = match &mut turn.answer {
                Some(answer) => answer,
                none => {
                    let kept = earlier.take().map(|answer| answer.into_kept(&model)).transpose()?.flatten();
                    none.insert(Box::new(Answer::new(&model, &request, kept)?))
                }
            };
            let prefill = info_span!("prefill step").in_scope(|| answer.generation.prefill_step())?;
            if !prefill.is_complete() {
                return Ok(ControlFlow::Continue(()));
            }
            let started = answer.started;
            turn.leave_ready();
            Ok(ControlFlow::Break(started))
        }))
    }

    /// Decodes a few tokens, or gives `None` after the last piece.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` before a start, or while another call of this session runs. After an error the answer is
    /// given up.
    pub fn next(&self, cancellation: &Cancellation) -> Result<Reply<Option<Piece>>> {
        let mut replies = Self::next_of_each(&[(self, cancellation)]);
        replies.pop().unwrap_or_else(|| Err(Error::new(ErrorCode::Internal, "a session got no reply")))
    }

    /// The same for several sessions of one language model, whose tokens are decoded in one pass over its weights for each
    /// step. Each has its own reply; one that ends, fails or is cancelled leaves the others to go on.
    ///
    /// # Errors
    /// Of each session as in [`Session::next`], and `INVALID_ARGUMENT` for one of another model than the first.
    pub fn next_of_each(sessions: &[(&Self, &Cancellation)]) -> Vec<Result<Reply<Option<Piece>>>> {
        let Some((first, _)) = sessions.first() else { return Vec::new() };
        let mut members = Vec::new();
        let replies = sessions
            .iter()
            .map(|(session, cancellation)| {
                if !Arc::ptr_eq(&session.model, &first.model) {
                    return Err(Error::argument("sessions of different models cannot decode together"));
                }
                let Some(turn) = session.take_turn()? else { return Ok(Reply::ready(None)) };
                let (sender, reply) = Reply::channel();
                members.push(Member::new(turn, (*cancellation).clone(), sender));
                Ok(reply)
            })
            .collect();
        if !members.is_empty() {
            let mut round = Round { members, began: Instant::now() };
            first.model.device().enqueue(Box::new(move |_| round.step()));
        }
        replies
    }

    /// Takes the answer to work on; none when it has ended.
    fn take_turn(&self) -> Result<Option<Turn>> {
        let mut slot = lock(&self.slot);
        match std::mem::replace(&mut slot.state, State::Busy) {
            State::Ready(answer) => {
                Ok(Some(Turn { slot: self.slot.clone(), run: slot.run, answer: Some(answer) }))
            }
            other => {
                let refused = match &other {
                    State::Ended(_) => Ok(None),
                    State::Closed => Err(closed()),
                    State::Busy => {
                        Err(Error::argument("the session still works on an earlier call: await it first"))
                    }
                    _ => Err(Error::argument("nothing is generated in this session: start it first")),
                };
                slot.state = other;
                refused
            }
        }
    }

    /// Frees the cache and gives up what runs. Closing twice does nothing.
    pub fn close(&self) {
        let mut slot = lock(&self.slot);
        slot.run += 1;
        let earlier = std::mem::replace(&mut slot.state, State::Closed);
        self.model.device().discard(earlier);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.close();
    }
}

/// A job's hold on the session: leaves it idle when the job fails, panics or is cancelled.
struct Turn {
    slot: Arc<Mutex<Slot>>,
    run: u64,
    answer: Option<Box<Answer>>,
}

impl Turn {
    fn check(&self) -> Result<()> {
        if lock(&self.slot).run == self.run { Ok(()) } else { Err(superseded()) }
    }

    fn leave_ready(&mut self) {
        if let Some(answer) = self.answer.take() {
            self.leave(State::Ready(answer));
        }
    }

    fn leave(&mut self, state: State) {
        let mut slot = lock(&self.slot);
        if slot.run == self.run {
            slot.state = state;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut slot = lock(&self.slot);
        if slot.run == self.run && matches!(slot.state, State::Busy) {
            slot.state = State::Idle;
        }
    }
}

/// Sessions that decode a piece each, a token in turn: every step is one pass over the weights for all of them.
struct Round {
    members: Vec<Member>,
    began: Instant,
}

/// A session's place in a round.
struct Member {
    turn: Turn,
    piece: Piece,
    cancellation: Cancellation,
    reply: oneshot::Sender<Result<Option<Piece>>>,
}

impl Round {
    /// A token for each member.
    fn step(&mut self) -> ControlFlow<()> {
        self.each(Member::check);
        let read = catch_panic(|| {
            let answers = self.members.iter_mut().filter_map(|member| member.turn.answer.as_mut());
            let mut generations: Vec<_> = answers.map(|answer| &mut answer.generation).collect();
            Ok(Generation::read_together(&mut generations)?)
        });
        let began = self.began;
        self.each(|member| read.clone().and_then(|()| member.decode(began)));
        if self.members.is_empty() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Lets each member work. Who is done, or fails, leaves with a reply.
    fn each(&mut self, mut work: impl FnMut(&mut Member) -> Result<ControlFlow<Piece>>) {
        for mut member in std::mem::take(&mut self.members) {
            let outcome = match catch_panic(|| work(&mut member)) {
                Ok(ControlFlow::Continue(())) => {
                    self.members.push(member);
                    continue;
                }
                Ok(ControlFlow::Break(piece)) => Ok(Some(piece)),
                Err(error) => Err(error),
            };
            let Member { turn, reply, .. } = member;
            // First the turn, so that the session is free again when its caller hears of it.
            drop(turn);
            let _ = reply.send(outcome);
        }
    }
}

impl Member {
    fn new(turn: Turn, cancellation: Cancellation, reply: oneshot::Sender<Result<Option<Piece>>>) -> Self {
        let piece = Piece { text: String::new(), token_ids: Vec::new(), finish: None };
        Self { turn, piece, cancellation, reply }
    }

    /// Whether somebody still wants the piece.
    fn check(&mut self) -> Result<ControlFlow<Piece>> {
        if self.reply.is_closed() {
            return Err(Error::new(ErrorCode::Aborted, "nobody waits for this piece"));
        }
        self.cancellation.check()?;
        self.turn.check()?;
        Ok(ControlFlow::Continue(()))
    }

    /// Takes the next token, and gives the piece once it is long enough.
    fn decode(&mut self, began: Instant) -> Result<ControlFlow<Piece>> {
        let Some(answer) = &mut self.turn.answer else { return Err(superseded()) };
        let token = answer.decode_token()?;
        let piece = &mut self.piece;
        piece.token_ids.push(token.id);
        piece.text.push_str(&answer.new_text());
        piece.finish = token.finish;
        if token.finish.is_some() {
            let answer = self.turn.answer.take();
            self.turn.leave(State::Ended(answer.filter(|answer| answer.embeds.is_some())));
        } else if answer.generation.new_ids().len() > 1
            && piece.token_ids.len() < TOKENS_A_PIECE
            && began.elapsed() < PIECE_TIME
        {
            return Ok(ControlFlow::Continue(()));
        } else {
            self.turn.leave_ready();
        }
        Ok(ControlFlow::Break(piece.clone()))
    }
}

fn lock(slot: &Mutex<Slot>) -> MutexGuard<'_, Slot> {
    // Every state is a valid one, whatever panicked while it was held.
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

fn closed() -> Error {
    Error::new(ErrorCode::HandleClosed, "the session is closed")
}

fn superseded() -> Error {
    Error::new(ErrorCode::Aborted, "the session was closed or started another generation")
}

/// An answer in the making.
#[derive(Debug)]
struct Answer {
    generation: Generation,
    tokenizer: LlamaTokenizer,
    decoder: StreamDecoder,
    /// All text so far, stop texts included.
    text: String,
    /// What was given out of it, without white space at its ends.
    shown: String,
    finish: Option<FinishReason>,
    started: Started,
    /// The prompt's embeddings (S, D), if what was read is to be kept.
    embeds: Option<Tensor>,
    cache: CachePrecision,
}

/// What an earlier answer had read: position by position an embedding (T, D), and the cache that holds as many.
struct Kept {
    embeds: Tensor,
    cache: KvCache,
    precision: CachePrecision,
}

impl Kept {
    /// The cache of the positions that a prompt (S, D) begins with too, but for its last one: that one gives the first token.
    fn for_prompt(mut self, prompt: &Tensor, precision: CachePrecision) -> Result<Option<KvCache>> {
        let (held, width) = self.embeds.dims2()?;
        let (length, _width) = prompt.dims2()?;
        let shared = held.min(length - 1);
        if shared == 0 || precision != self.precision {
            return Ok(None);
        }
        let equal = self.embeds.narrow(0, 0, shared)?.eq(&prompt.narrow(0, 0, shared)?)?;
        let equal = equal.to_dtype(DType::U32)?.sum(1)?.to_vec1::<u32>()?;
        let common = equal.iter().take_while(|numbers| **numbers as usize == width).count();
        self.cache.truncate(common);
        Ok((common > 0).then_some(self.cache))
    }
}

impl Answer {
    fn new(language_model: &LanguageModel, request: &GenerateRequest, kept: Option<Kept>) -> Result<Self> {
        let (model, tokenizer) = (language_model.model(), language_model.tokenizer());
        let ids = tokenize_with_images(tokenizer, &request.prompt);
        let visual: Vec<Tensor> =
            request.visual_tokens.iter().map(|tokens| tokens.tensor().clone()).collect();
        let spliced = splice(&ids, &visual, request.layout, |ids| model.embed(ids))?;
        let prompt =
            Prompt { visual_tokens: spliced.visual_count(), embeds: spliced.embeds.to_dtype(model.dtype())? };
        let kept = kept.map(|kept| kept.for_prompt(&prompt.embeds, request.cache)).transpose()?.flatten();
        let started = Started {
            prompt_tokens: prompt.embeds.dims2()?.0,
            visual_tokens: prompt.visual_tokens,
            kept_tokens: kept.as_ref().map_or(0, KvCache::len),
        };
        // With dynamic scaling the keys of a position depend on how long its prompt was.
        let may_keep = !matches!(model.config().rope_scaling, Some(RopeScaling::Dynamic { .. }));
        let embeds = (request.keep && may_keep).then(|| prompt.embeds.clone());
        let options = GenerationOptions {
            cache: request.cache,
            prefill_chunk: language_model.prefill_chunk(),
            ..GenerationOptions::new(request.max_new_tokens, request.sampling.clone())
        };
        let stop_rule = stop_rule(&model.config().eos_ids, &request.stop, tokenizer)?;
        Ok(Self {
            generation: Generation::continuing(Arc::clone(model), prompt, options, stop_rule, kept)?,
            tokenizer: tokenizer.clone(),
            decoder: tokenizer.stream(),
            text: String::new(),
            shown: String::new(),
            finish: None,
            started,
            embeds,
            cache: request.cache,
        })
    }

    /// What it had read, if that is to be kept.
    fn into_kept(self, language_model: &LanguageModel) -> Result<Option<Kept>> {
        let Some(prompt) = self.embeds else { return Ok(None) };
        let (length, _width) = prompt.dims2()?;
        let held = self.generation.cached_positions();
        let embeds = match held.checked_sub(length) {
            None | Some(0) => prompt.narrow(0, 0, held)?,
            Some(generated) => {
                let answered = language_model.model().embed(&self.generation.new_ids()[..generated])?;
                Tensor::cat(&[&prompt, &answered.to_dtype(prompt.dtype())?], 0)?
            }
        };
        Ok(Some(Kept { embeds, cache: self.generation.into_cache(), precision: self.cache }))
    }

    fn decode_token(&mut self) -> Result<Token> {
        let _span = info_span!("decode token").entered();
        let tokenizer = &self.tokenizer;
        let token = self.generation.decode_step(&|ids| tokenizer.decode(ids, true))?;
        let token =
            token.ok_or_else(|| Error::new(ErrorCode::Internal, "an answer went on behind its end"))?;
        self.text.push_str(&self.decoder.push(token.id));
        self.finish = token.finish;
        if self.finish.is_some() {
            self.text.push_str(&self.decoder.finish());
        }
        Ok(token)
    }

    /// What may be shown now and was not given out before.
    fn new_text(&mut self) -> String {
        let rule = self.generation.stop_rule();
        let answer = match self.finish {
            Some(_) => rule.answer(&self.text),
            None => strip(rule.settled(&self.text)),
        };
        let delta = answer.strip_prefix(self.shown.as_str()).unwrap_or_default().to_owned();
        self.shown.push_str(&delta);
        delta
    }
}

/// Positions of one prefill step. A large model on a CPU needs half a minute for the usual chunk, in which nothing
/// could be cancelled; far smaller ones would spend their time on reading the weights again.
pub(crate) fn prefill_chunk(config: &LanguageModelConfig, kind: DeviceKind) -> usize {
    /// Multiply-adds of one step on a CPU: a few seconds on a small machine.
    const CPU_STEP: usize = 400_000_000_000;
    /// Of a few hundred rows a GPU reads weights longer than it multiplies, and attention fills half of it; weights in blocks are
    /// unpacked anew for each chunk. A tenth of a second of a 7B model on an H100.
    const CUDA_CHUNK: usize = 4096;
    let attention = 2 * (config.heads + config.kv_heads) * config.head_dim;
    let a_token = config.layers * config.hidden_size * (attention + 3 * config.intermediate_size);
    // AMX is several times as quick, and wants as many more rows for weights that it unpacks.
    let cpu_step =
        if llamavid_kernels::instruction_set() == Ok("avx512amx") { 4 * CPU_STEP } else { CPU_STEP };
    match kind {
        DeviceKind::Cpu => (cpu_step / a_token.max(1)).clamp(64, PREFILL_CHUNK),
        DeviceKind::Cuda => CUDA_CHUNK,
    }
}

/// Stop texts as the model's rule knows them: a special token never shows in the text, so it is looked for by its id.
fn stop_rule(eos_ids: &[u32], stop: &[String], tokenizer: &LlamaTokenizer) -> Result<StopRule> {
    let (mut keywords, mut strings) = (Vec::new(), Vec::new());
    for text in stop {
        match tokenizer.encode(text, false).as_slice() {
            [id] if !text.is_empty() && tokenizer.decode(&[*id], true).is_empty() => {
                keywords.push(Keyword { text: text.clone(), ids: vec![*id] });
            }
            _ => strings.push(text.clone()),
        }
    }
    Ok(StopRule::new(eos_ids).with_keywords(&keywords)?.with_strings(&strings)?)
}

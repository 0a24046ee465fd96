import process from 'node:process';
import type {
  Answer,
  AnswerResult,
  AskOptions,
  Clip,
  LlamaVid,
  LookedSource,
  SamplingReport,
  SubtitleReport,
} from '@llamavid/pipeline';
import { type AskFlags, askOptions, filesOf, loadOptions, openOptions, wrong } from './flags.js';
import { Interrupt } from './interrupt.js';
import { checkFiles, lookAtFile, planFiles, sourceOf } from './media-files.js';
import { previewToJson, previewToText } from './preview.js';
import { Progress } from './progress.js';
import { readQuestions } from './questions.js';
import { reportFailure } from './report-failure.js';
import { samplingToJson } from './sampling-to-json.js';
import { writeAnswer, writeJson } from './write-answer.js';

/** `llamavid ask`: files, and behind them or in a file the questions. */
export async function ask(words: readonly string[], flags: AskFlags): Promise<number> {
  const begun = performance.now();
  const { paths, questions } = await readQuestions(words, flags.questions);
  const [question = '', ...others] = questions;
  const onlyTimeline = flags.timeline !== undefined && flags.json !== true;
  if (onlyTimeline && paths.length !== 1) {
    throw wrong(`--timeline is for one video, but ${paths.length} were given`);
  }
  if (others.length > 0 && (onlyTimeline || flags.dryRun)) {
    const what = onlyTimeline ? '--timeline without --json' : '--dry-run';
    throw wrong(`${what} is for one question, but ${questions.length} were given`);
  }
  using interrupt = new Interrupt();
  const { signal } = interrupt;
  const toOpen = openOptions(flags, paths, signal);
  // The addon is loaded here and not for `--help`.
  const { conversationTemplates, LlamaVid, previewPrompt, timelineToVtt } = await import(
    '@llamavid/pipeline'
  );
  const toAsk = askOptions(flags, conversationTemplates());
  checkFiles(filesOf(paths, flags));

  const progress = new Progress(flags.quiet ?? false);
  const looked: LookedSource[] = [];
  try {
    if (flags.dryRun) {
      progress.step('looking for the frames');
      const { model, conversation } = flags;
      const preview = await previewPrompt(paths.map(sourceOf), question, { ...toOpen, model, conversation });
      noteOddities(preview, flags, progress);
      process.stdout.write(
        flags.json ? `${JSON.stringify(previewToJson(preview))}\n` : previewToText(preview),
      );
      return 0;
    }
    for (const path of paths) looked.push(await lookAtFile(flags.model, path, toOpen, progress));
    const toLoad = loadOptions(flags, signal);
    // One that alone is too long is told in its place, behind the answers to others.
    const shortest = questions.reduce((left, right) => (right.length < left.length ? right : left));
    const toPlan = { ...toOpen, ...toAsk, ...toLoad, question: shortest, withoutAnswer: onlyTimeline };
    const dtype = await planFiles(flags.model, looked, toPlan, progress);
    progress.step('loading the model');
    await using model = await LlamaVid.load(flags.model, { ...toLoad, dtype });
    const clips: Clip[] = [];
    for (const each of looked) clips.push(await model.open(each));
    const [clip] = clips;
    if (onlyTimeline && clip !== undefined) {
      progress.step('looking for it');
      const timeline = await model.timeline(clip, question, { signal });
      progress.clear();
      process.stdout.write(
        flags.timeline === 'vtt' ? timelineToVtt(timeline) : `${JSON.stringify(timeline)}\n`,
      );
      return 0;
    }
    progress.step('answering');
    const options = { ...toAsk, timeline: flags.timeline !== undefined, signal };
    if (others.length > 0) {
      return await answerAll(model, clips, questions, options, flags, progress, begun);
    }
    const result = await write(model.ask(clips, question, options), flags, progress);
    noteOddities(result, flags, progress);
    if (flags.json) writeJson(toJson(result, performance.now() - begun));
  } finally {
    progress.clear();
    for (const each of looked) await each.close();
  }
  return 0;
}

/** Answers several questions side by side and writes them in their order. One that fails shows in the exit code. */
async function answerAll(
  model: LlamaVid,
  clips: readonly Clip[],
  questions: readonly string[],
  options: AskOptions,
  flags: AskFlags,
  progress: Progress,
  begun: number,
): Promise<number> {
  const answers = model.askEach(clips, questions, options);
  // Read together, they are decoded together. A failure is told when the answer's turn comes.
  for (const answer of answers) answer.result().catch(() => undefined);
  let exitCode = 0;
  let isFirst = true;
  for (const [index, answer] of answers.entries()) {
    const question = questions[index] ?? '';
    try {
      progress.clear();
      if (!flags.json) process.stdout.write(`${isFirst ? '' : '\n'}${question}\n`);
      const result = await write(answer, flags, progress);
      if (isFirst) noteOddities(result, flags, progress);
      if (flags.json) writeJson({ question, ...toJson(result, performance.now() - begun) });
    } catch (error) {
      if (options.signal?.aborted) throw error;
      exitCode = reportFailure(error, { json: flags.json ?? false, about: { question } });
    }
    isFirst = false;
  }
  return exitCode;
}

/** Writes an answer while it is made, unless the result is wanted as JSON. */
async function write(answer: Answer, flags: AskFlags, progress: Progress): Promise<AnswerResult> {
  if (!flags.json) {
    for await (const delta of answer) {
      progress.clear();
      writeAnswer(delta);
    }
    process.stdout.write('\n');
  }
  return await answer.result();
}

function noteOddities(
  { samplings, subtitles }: { samplings: readonly SamplingReport[]; subtitles: readonly SubtitleReport[] },
  flags: AskFlags,
  progress: Progress,
): void {
  if (flags.subtitles === 'auto' && subtitles.length === 0) {
    progress.note('subtitles: there is no file beside the video, and no text stream in it');
  }
  if (flags.subtitles === 'speech' && subtitles.length === 0) {
    progress.note('subtitles: nothing was heard');
  }
  for (const { notes } of [...samplings, ...subtitles]) {
    for (const note of notes) progress.note(note);
  }
  progress.clear();
}

/** The object that `--json` writes; its shape is a contract (README.md). */
function toJson(result: AnswerResult, totalMs: number): object {
  const { text, tokenIds, finishReason, usage, sampling, samplings, subtitles, work, timings, model } =
    result;
  const { timelines } = result;
  return {
    answer: text,
    tokenIds,
    finishReason,
    usage,
    sampling: sampling === undefined ? null : samplingToJson(sampling),
    ...(samplings.length > 1 && { samplings: samplings.map(samplingToJson) }),
    ...(subtitles[0] !== undefined && { subtitles: subtitles[0] }),
    ...(timelines[0] !== undefined && { timeline: timelines[0] }),
    work,
    timings: Object.fromEntries(
      Object.entries({ ...timings, totalMs }).map(([name, value]) => [name, Math.round(value * 100) / 100]),
    ),
    model,
  };
}

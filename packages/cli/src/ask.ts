import { existsSync } from 'node:fs';
import process from 'node:process';
import type { AnswerResult, Clip, SamplingReport, SubtitleReport } from '@llamavid/pipeline';
import { type AskFlags, askOptions, filesOf, loadOptions, openOptions, wrong } from './flags.js';
import { Interrupt } from './interrupt.js';
import { checkFiles, openFile, planFiles, sourceOf } from './media-files.js';
import { previewToJson, previewToText } from './preview.js';
import { Progress } from './progress.js';
import { samplingToJson } from './sampling-to-json.js';
import { writeAnswer } from './write-answer.js';

/** `llamavid ask`: the last word is the question, the others are files. */
export async function ask(words: readonly string[], flags: AskFlags): Promise<number> {
  const begun = performance.now();
  const [paths, question] = [words.slice(0, -1), words.at(-1) ?? ''];
  if (question.trim() === '') throw wrong('the question is empty', 'Put it in quotes behind the files.');
  if (paths.length === 0 && existsSync(question)) {
    throw wrong(`the question about ${question} is missing`, 'llamavid ask <media...> "<question>"');
  }
  const onlyTimeline = flags.timeline !== undefined && flags.json !== true;
  if (onlyTimeline && paths.length !== 1) {
    throw wrong(`--timeline is for one video, but ${paths.length} were given`);
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
    const toLoad = loadOptions(flags, signal);
    const toPlan = { ...toOpen, ...toAsk, ...toLoad, question, withoutAnswer: onlyTimeline };
    const dtype = await planFiles(flags.model, paths, toPlan, progress);
    progress.step('loading the model');
    await using model = await LlamaVid.load(flags.model, { ...toLoad, dtype });
    const clips: Clip[] = [];
    for (const path of paths) clips.push(await openFile(model, path, toOpen, progress));
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
    const answer = model.ask(clips, question, { ...toAsk, timeline: flags.timeline !== undefined, signal });
    if (!flags.json) {
      for await (const delta of answer) {
        progress.clear();
        writeAnswer(delta);
      }
      process.stdout.write('\n');
    }
    const result = await answer.result();
    noteOddities(result, flags, progress);
    if (flags.json) process.stdout.write(`${JSON.stringify(toJson(result, performance.now() - begun))}\n`);
  } finally {
    progress.clear();
  }
  return 0;
}

function noteOddities(
  { samplings, subtitles }: { samplings: readonly SamplingReport[]; subtitles: readonly SubtitleReport[] },
  flags: AskFlags,
  progress: Progress,
): void {
  if (flags.subtitles === 'auto' && subtitles.length === 0) {
    progress.note('subtitles: there is no file beside the video, and no text stream in it');
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

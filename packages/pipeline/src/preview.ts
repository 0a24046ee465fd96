import { LlamaVidError } from '@llamavid/errors';
import { conversation, describeModel } from '@llamavid/llm';
import type { Media, MediaSource, SamplingReport } from '@llamavid/video';
import type { OpenOptions } from './clip.js';
import { LookedSource } from './looked-source.js';
import { EMBEDDED, locateModel } from './model-name.js';
import { countTokens, type Shown, usualTemplate, writePrompt } from './prompt.js';
import { type SubtitleReport, subtitlesWithin } from './subtitles.js';

export interface PreviewOptions extends OpenOptions {
  /** Folder or name of the model. Default: the embedded one. */
  model?: string | undefined;
  /** Conversation template. Default: as for a question that is really asked. */
  conversation?: string | undefined;
}

/** What a model would read. */
export interface PromptPreview {
  /** The whole prompt, with an `<image>` for each visual token. */
  prompt: string;
  conversation: string;
  /** What the query model would read. */
  queryQuestion: string;
  /** Seconds of the frames of each video, in the order of their places in the prompt. */
  frameTimes: number[][];
  tokensPerFrame: number;
  /** Tokens of the prompt, visual ones included. */
  promptTokens: number;
  visualTokens: number;
  /** Tokens that prompt and answer can have in all. */
  contextLength: number;
  samplings: SamplingReport[];
  /** The subtitles of each video that has some. */
  subtitles: SubtitleReport[];
}

/**
 * The prompt of a question, to the letter, without the model's weights: videos are decoded to know their frames' times, nothing
 * is encoded.
 */
export async function previewPrompt(
  sources: readonly MediaSource[],
  question: string,
  options: PreviewOptions = {},
): Promise<PromptPreview> {
  if (question.includes('<image>')) {
    throw new LlamaVidError(
      'INVALID_ARGUMENT',
      'the question holds `<image>`, which stands for a visual token',
    );
  }
  const { folder } = locateModel(options.model ?? EMBEDDED);
  const description = await describeModel(folder);
  const { tokensPerFrame, imagePlaceholder, contextLength, preprocessing } = description;
  const samplings: SamplingReport[] = [];
  const reports: SubtitleReport[] = [];
  const shown: Shown[] = [];
  for (const source of sources) {
    await using looked = await LookedSource.at(source, tokensPerFrame, { ...options, store: 'none' });
    const { subtitles: read, movie } = looked;
    if (movie !== undefined) {
      samplings.push(movie.sampling);
      if (read !== undefined) reports.push(read.report);
      const { subtitles: said, inputs } = read ?? {};
      shown.push({ subtitles: said, inputs, frameTimes: movie.sampling.timestamps, tokensPerFrame });
      continue;
    }
    await using opened: Media = await looked.take(tokensPerFrame);
    for await (const { pixels } of opened.pixels(preprocessing, { signal: options.signal })) pixels.close();
    const sampling = opened.report();
    samplings.push(sampling);
    const subtitles = read && subtitlesWithin(read, options, sampling.timestamps);
    if (subtitles !== undefined) reports.push(subtitles.report);
    shown.push({ subtitles: subtitles?.subtitles, frameTimes: sampling.timestamps, tokensPerFrame });
  }
  const template = conversation(
    options.conversation ?? usualTemplate(description.conversation, reports.length > 0),
  );
  const written = writePrompt(template, [], shown, imagePlaceholder, question);
  const { text, layout } = written;
  const { promptTokens, visualTokens } = countTokens(description, written, shown);
  let prompt = text;
  if (layout === 'per-placeholder') {
    const pieces = text.split('<image>');
    prompt = pieces.reduce((left, right, index) => {
      const frames = shown[index - 1]?.frameTimes.length ?? 0;
      return `${left}${'<image>'.repeat(frames * tokensPerFrame)}${right}`;
    });
  }
  return {
    prompt,
    conversation: template.name,
    queryQuestion: question,
    frameTimes: shown.map(({ frameTimes }) => [...frameTimes]),
    tokensPerFrame,
    promptTokens,
    visualTokens,
    contextLength,
    samplings,
    subtitles: reports,
  };
}

import { availableParallelism } from 'node:os';
import { LlamaVidError } from '@llamavid/errors';
import {
  callNativeAsync,
  DataCheck,
  publishedData as nativePublished,
  withCancellation,
} from '@llamavid/native';
import { openMedia } from '@llamavid/video';
import { checkRecipe, loadRecipe, type Recipe } from './recipe.js';

/** Something wrong with a record. */
export interface DataFinding {
  /** The record's place in the list, from 0. */
  index: number;
  /** The record's `id`, or `#` and its place where it has none. */
  id: string;
  /** `error`: it cannot be trained on, or would teach something wrong. `warning`: it is trained on, in part or without effect. */
  severity: 'error' | 'warning';
  /** What kind of fault it is: `missing_file`, `unreadable_video`, `tag_mismatch`, `wrong_order`, …. */
  kind: string;
  message: string;
}

/** What a list holds. */
export interface DataSummary {
  records: number;
  images: number;
  videos: number;
  features: number;
  texts: number;
  /** Records with an error. */
  badRecords: number;
  /** Records with warnings and no error. */
  warnedRecords: number;
}

export interface DataCheckOptions {
  /** Folder of the records' pictures. */
  images?: string | undefined;
  /** Folder of the records' videos and feature files. */
  videos?: string | undefined;
  /**
   * A recipe, the name of one in this package, or a file: records are made into its samples too, so that those are found
   * that it cuts or learns nothing from. Needs `languageModel`.
   */
  recipe?: Recipe | string | undefined;
  /** Folder of the base language model, for its tokenizer. */
  languageModel?: string | undefined;
  /** Videos are only looked for and not opened. */
  skipVideos?: boolean | undefined;
  onProgress?: ((done: number, total: number) => void) | undefined;
  signal?: AbortSignal | undefined;
}

/** Videos that are opened side by side. */
const READERS = Math.min(availableParallelism(), 4);

/** Finds what is wrong with the records of a list, in the list's order; returns what the list holds. */
export async function* checkData(
  list: string,
  { images, videos, recipe, languageModel, skipVideos = false, onProgress, signal }: DataCheckOptions = {},
): AsyncGenerator<DataFinding, DataSummary, void> {
  const samples = samplesOf(recipe, languageModel);
  const check = await withCancellation(signal, (cancellation) =>
    DataCheck.open(list, images, videos, samples, cancellation),
  );
  // Many records may name one video.
  const seen = new Map<string, Promise<string | undefined>>();
  let badVideos = 0;
  try {
    for (;;) {
      if (signal?.aborted) {
        throw new LlamaVidError('ABORTED', 'the check was cancelled', { cause: signal.reason });
      }
      const part = await callNativeAsync(() => check.next());
      if (part === null) throw new LlamaVidError('INTERNAL', 'the check ended without its numbers');
      const findings: DataFinding[] = [...part.findings];
      if (!skipVideos) {
        const waiting = part.videos.values();
        const look = async () => {
          for (const { index, id, path } of waiting) {
            const problem = seen.get(path) ?? problemOf(path, signal);
            seen.set(path, problem);
            const message = await problem;
            if (message === undefined) continue;
            // The record has no error so far, or its video would not have been named.
            badVideos += 1;
            findings.push({ index, id, severity: 'error', kind: 'unreadable_video', message });
          }
        };
        await Promise.all(Array.from({ length: READERS }, look));
      }
      yield* findings.sort((a, b) => a.index - b.index);
      if (part.totals !== undefined) {
        return { ...part.totals, badRecords: part.totals.badRecords + badVideos };
      }
      onProgress?.(part.records, part.total);
    }
  } finally {
    check.close();
  }
}

function samplesOf(recipe: Recipe | string | undefined, languageModel: string | undefined) {
  if (recipe === undefined && languageModel === undefined) return undefined;
  if (recipe === undefined || languageModel === undefined) {
    const missing = recipe === undefined ? 'a recipe' : "a language model's folder";
    throw new LlamaVidError('INVALID_ARGUMENT', `${missing} is missing: samples are made with both`);
  }
  const { data, model } = typeof recipe === 'string' ? loadRecipe(recipe) : checkRecipe(recipe);
  return {
    languageModel,
    template: data.template,
    maxLength: data.maxLength,
    imageStartEnd: model.imageStartEnd,
    tokensPerFrame: data.videoToken,
  };
}

/** Opens a video and decodes its first frame. */
async function problemOf(path: string, signal: AbortSignal | undefined): Promise<string | undefined> {
  try {
    await using media = await openMedia(path, { fps: 1, decoderThreads: 1, signal });
    for await (const _ of media.frames({ signal })) return undefined;
    return `${path} has no frame that can be read`;
  } catch (error) {
    if (error instanceof LlamaVidError && error.code.startsWith('MEDIA_')) return error.message;
    throw error;
  }
}

/** What is there of the published data. */
export interface PublishedData {
  /** The six lists. */
  lists: PublishedList[];
  /** Weights that training starts from. */
  weights: { path: string; stages: number[]; found: boolean }[];
  complete: boolean;
}

/** A published list and the folders that its records name files in. */
export interface PublishedList {
  name: string;
  stage: number;
  /** `image`, `short video` or `long video`. */
  setting: string;
  about: string;
  path: string;
  found: boolean;
  /** An empty folder is as good as none. */
  folders: { path: string; found: boolean }[];
}

/** Looks for the published data under `root`, the folder that holds `data` and `model_zoo`. */
export async function publishedData(root: string): Promise<PublishedData> {
  return JSON.parse(await callNativeAsync(() => nativePublished(root)));
}

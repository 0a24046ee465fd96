import { availableParallelism } from 'node:os';
import { LlamaVidError } from '@llamavid/errors';
import { callNative, callNativeAsync, DataList, publishedData as nativePublished } from '@llamavid/native';
import { openMedia } from '@llamavid/video';

/** Something wrong with a record. */
export interface DataProblem {
  /** The record's place in the list, from 0. */
  index: number;
  /** The record's `id`, or its place (`#12`) where it has none. */
  id: string;
  /** What kind of problem, for programs: `missing-file`, `unreadable-media`, `image-tags`, `turn-order`, …. */
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
  problems: number;
}

export interface DataCheckOptions {
  /** Folder of the records' pictures. */
  images?: string | undefined;
  /** Folder of the records' videos and feature files. */
  videos?: string | undefined;
  /** Pictures and videos are only looked for and not opened. */
  skipMedia?: boolean | undefined;
  onProgress?: ((done: number, total: number) => void) | undefined;
  signal?: AbortSignal | undefined;
}

/** Records that are read at once. */
const CHUNK = 256;
const READERS = Math.min(availableParallelism(), 4);

/** Names each bad record of a list, in the list's order; returns what the list holds. */
export async function* checkData(
  list: string,
  { images, videos, skipMedia = false, onProgress, signal }: DataCheckOptions = {},
): AsyncGenerator<DataProblem, DataSummary, void> {
  const native = await callNativeAsync(() => DataList.open(list, images, videos));
  try {
    const records = callNative(() => native.length);
    const summary: DataSummary = { records, images: 0, videos: 0, features: 0, texts: 0, problems: 0 };
    const kinds = { image: 'images', video: 'videos', features: 'features', none: 'texts' } as const;
    for (let start = 0; start < records; start += CHUNK) {
      if (signal?.aborted)
        throw new LlamaVidError('ABORTED', 'the check was cancelled', { cause: signal.reason });
      const checked = await callNativeAsync(() => native.check(start, Math.min(CHUNK, records - start)));
      for (const { media } of checked.records) summary[kinds[media]] += 1;
      const problems: DataProblem[] = [...checked.problems];
      if (!skipMedia) {
        const broken = new Set(problems.map(({ index }) => index));
        const waiting = checked.records.values();
        const look = async () => {
          for (const { index, id, media, path } of waiting) {
            if (path === undefined || media === 'features' || media === 'none' || broken.has(index)) continue;
            const message = await problemOf(path, signal);
            if (message !== undefined) problems.push({ index, id, kind: 'unreadable-media', message });
          }
        };
        await Promise.all(Array.from({ length: READERS }, look));
      }
      problems.sort((a, b) => a.index - b.index);
      summary.problems += problems.length;
      yield* problems;
      onProgress?.(Math.min(start + CHUNK, records), records);
    }
    return summary;
  } finally {
    native.close();
  }
}

/** Opens a file and decodes its first frame. */
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

/** One of the six published lists and what a folder lacks of it. */
export interface PublishedList {
  /** File name of the list. */
  name: string;
  /** Stage that it belongs to. */
  stage: number;
  /** Where the list should be. */
  path: string;
  found: boolean;
  /** Folders of media that its records name. */
  folders: { path: string; found: boolean }[];
}

/** Looks for the published data under `root`, which holds `LLaMA-VID-Pretrain` and `LLaMA-VID-Finetune`. */
export async function publishedData(root: string): Promise<PublishedList[]> {
  return JSON.parse(await callNativeAsync(() => nativePublished(root)));
}

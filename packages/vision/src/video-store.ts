import {
  callNative,
  callNativeAsync,
  type StoreEntry as NativeStoreEntry,
  type StoreWriter as NativeStoreWriter,
  VideoStore as NativeVideoStore,
  nativeHandle,
  shardFrames as nativeShardFrames,
  type StoredVideo,
  withCancellation,
} from '@llamavid/native';
import { digestFolder } from './default-store.js';
import type { VisualEncoder } from './visual-encoder.js';
import { VisualFeatures } from './visual-features.js';

export type { StoredVideo };

/**
 * How a feature's number is stored. `16bit` rounds what was computed in 32 bits once, and keeps what was computed in 16. `8bit`
 * takes half of that, with a scale for each patch.
 */
export type StorePrecision = '16bit' | '8bit';

export interface FindOptions {
  /** How frames are chosen, in words that are the same for the same choice. */
  sampling: string;
  /** Default `16bit`. */
  precision?: StorePrecision | undefined;
  /** Stops reading the source; the promise then rejects with `ABORTED`. */
  signal?: AbortSignal | undefined;
}

/** Frames that are stored in one piece, and so should be encoded at once. */
export const shardFrames: number = nativeShardFrames();

/**
 * A folder with the visual features of videos, so that each is encoded once: by any process, for all questions. A video is known by
 * its content, not by its name, and by everything else that its features depend on: how frames are chosen, how they become pixels,
 * the encoder's weights and what it computes in.
 */
export class VideoStore {
  readonly #native: NativeVideoStore;
  readonly folder: string;

  private constructor(native: NativeVideoStore, folder: string) {
    this.#native = native;
    this.folder = folder;
  }

  /** Opens a folder, which need not be there yet. Rejects with `STORE_INVALID` for one that holds something else. */
  static async open(folder: string): Promise<VideoStore> {
    const native = await callNativeAsync(() => NativeVideoStore.open(folder, digestFolder()));
    return new VideoStore(native, folder);
  }

  /** All videos, the one that was used last first. */
  list(): Promise<StoredVideo[]> {
    return callNativeAsync(() => this.#native.list());
  }

  /** Removes a video. Whoever has its features open keeps them. Rejects with `STORE_LOCKED` while it is written. */
  remove(key: string): Promise<void> {
    return callNativeAsync(() => this.#native.remove(key));
  }

  /** Removes what was not used for longest until the rest takes at most `limitBytes`, and gives what went. */
  prune(limitBytes: number): Promise<StoredVideo[]> {
    return callNativeAsync(() => this.#native.prune(limitBytes));
  }

  /**
   * The report that was stored with a file's frames, whatever encoder and precision their features are of; undefined where frames
   * are missing. Tells what is known of a file before a model is loaded.
   */
  async report(
    source: string,
    { sampling, signal }: Omit<FindOptions, 'precision'>,
  ): Promise<string | undefined> {
    const report = await withCancellation(signal, (cancellation) =>
      this.#native.report(source, sampling, cancellation),
    );
    return report ?? undefined;
  }

  /** Looks for what `encoder` makes of a file, or of a folder of pictures. */
  async find(encoder: VisualEncoder, source: string, options: FindOptions): Promise<StoreEntry> {
    const { sampling, precision = '16bit', signal } = options;
    const native = await withCancellation(signal, (cancellation) =>
      this.#native.entry(encoder[nativeHandle](), source, sampling, precision, cancellation),
    );
    return new StoreEntry(native);
  }
}

/** Where the features of a video are in a store, or will be. */
export class StoreEntry {
  readonly #native: NativeStoreEntry;
  /** Its name in the store. */
  readonly key: string;
  /** The report that was stored with the last frame; undefined where frames are missing. */
  readonly report: string | undefined;
  /** What is damaged about what is there, which a writer makes anew. */
  readonly problem: string | undefined;

  /** @internal Made by `VideoStore.find`. */
  constructor(native: NativeStoreEntry) {
    this.#native = native;
    this.key = native.key;
    this.report = native.report ?? undefined;
    this.problem = native.problem ?? undefined;
  }

  /** The features, read from their files as they are needed; undefined where frames are missing. */
  features(): VisualFeatures | undefined {
    const native = callNative(() => this.#native.features());
    return native === null ? undefined : new VisualFeatures(native);
  }

  /**
   * Becomes the only writer, to go on where an earlier one stopped. Rejects with `STORE_LOCKED` while there is another one, or with
   * `wait` waits for its end.
   */
  async writer(options: { wait?: boolean; signal?: AbortSignal | undefined } = {}): Promise<StoreWriter> {
    const native = await withCancellation(options.signal, (cancellation) =>
      this.#native.writer(options.wait ?? false, cancellation),
    );
    return new StoreWriter(native);
  }
}

/** Writes the features of a video, shard by shard. Nobody else can until it is closed. What it wrote stays. */
export class StoreWriter implements Disposable {
  readonly #native: NativeStoreWriter;
  /** Seconds of the frames that were there when it began. */
  readonly times: readonly number[];
  /** Whether they were all. */
  readonly isComplete: boolean;
  /** What was damaged and has to be made anew, in words. */
  readonly repairs: readonly string[];

  /** @internal Made by `StoreEntry.writer`. */
  constructor(native: NativeStoreWriter) {
    this.#native = native;
    this.times = native.times;
    this.isComplete = native.isComplete;
    this.repairs = native.repairs;
  }

  /**
   * Stores the features of the next `shardFrames` frames, or of the last ones, and closes them. They are on the disk when this
   * resolves. One call at a time.
   */
  async append(features: VisualFeatures, timestamps: readonly number[]): Promise<void> {
    try {
      await callNativeAsync(() => this.#native.append(features[nativeHandle](), [...timestamps]));
    } finally {
      features.close();
    }
  }

  /**
   * Says that all frames are there, and opens their features. Rejects with `MEDIA_UNREADABLE` if the source changed meanwhile:
   * nothing of it is stored then.
   */
  async finish(report: string): Promise<VisualFeatures> {
    return new VisualFeatures(await callNativeAsync(() => this.#native.finish(report)));
  }

  /** Lets others write. Closing twice does nothing. */
  close(): void {
    this.#native.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

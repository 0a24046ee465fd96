import {
  callNative,
  callNativeAsync,
  FeatureFile as NativeFeatureFile,
  FeatureFileWriter as NativeFeatureFileWriter,
  nativeHandle,
  withCancellation,
} from '@llamavid/native';
import { digestFolder } from './default-store.js';
import type { VisualEncoder } from './visual-encoder.js';
import { type FeatureKind, VisualFeatures } from './visual-features.js';

/** Features that were made before: a file of the reference's layout, or a video of a store. Opening reads no numbers. */
export class FeatureFile {
  readonly #native: NativeFeatureFile;
  readonly frameCount: number;
  /** Text of a file: one `<image>` a frame, subtitles between them; undefined for a stored video. */
  readonly inputs: string | undefined;
  /** The report that a stored video was finished with. */
  readonly report: string | undefined;

  private constructor(native: NativeFeatureFile) {
    this.#native = native;
    this.frameCount = native.frameCount;
    this.inputs = native.inputs ?? undefined;
    this.report = native.report ?? undefined;
  }

  /**
   * Opens a pickle (of which nothing is run) or a `.safetensors` file with `feats` and `inputs`, the folder of a store that holds one
   * video, or the folder of a video in a store. Rejects with `MEDIA_NOT_FOUND`, `DATA_INVALID`, `STORE_INVALID`.
   */
  static async open(path: string): Promise<FeatureFile> {
    return new FeatureFile(await callNativeAsync(() => NativeFeatureFile.open(path)));
  }

  /**
   * The features, for the model that `encoder` is of. Those of a file are always `precomputed`: the reference cuts their class rows off
   * when it reads them. Rejects with `DATA_INVALID` or `STORE_INVALID` for features of another model.
   */
  async features(
    encoder: VisualEncoder,
    options: { kind: FeatureKind; signal?: AbortSignal | undefined },
  ): Promise<VisualFeatures> {
    const native = await withCancellation(options.signal, (cancellation) =>
      this.#native.features(encoder[nativeHandle](), options.kind, digestFolder(), cancellation),
    );
    return new VisualFeatures(native);
  }
}

/** Writes the reference's layout: a pickled dict of a numpy array `feats` in f16 and a text `inputs`. */
export class FeatureFileWriter implements Disposable {
  readonly #native: NativeFeatureFileWriter;

  private constructor(native: NativeFeatureFileWriter) {
    this.#native = native;
  }

  /**
   * Begins a file of features of `encoder`, in a folder that is there. It gets its name when it is whole. Rejects with `STORE_LOCKED` while
   * another process writes it.
   */
  static async create(path: string, encoder: VisualEncoder): Promise<FeatureFileWriter> {
    return new FeatureFileWriter(
      await callNativeAsync(() => NativeFeatureFileWriter.create(path, encoder[nativeHandle]())),
    );
  }

  /** Writes the features of the next frames, and closes them. One call at a time. */
  async append(features: VisualFeatures): Promise<void> {
    try {
      await callNativeAsync(() => this.#native.append(features[nativeHandle]()));
    } finally {
      features.close();
    }
  }

  /** Ends the file with the text of its frames: an `<image>` for each. */
  finish(inputs: string): Promise<void> {
    return callNativeAsync(() => this.#native.finish(inputs));
  }

  /** Leaves no file that is not finished. Closing twice does nothing. */
  close(): void {
    callNative(() => this.#native.close());
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

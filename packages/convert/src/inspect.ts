/** What a model's folder or a file of weights holds. */
import type { ErrorCode } from '@llamavid/errors';
import { inspectModel, withCancellation } from '@llamavid/native';

export interface InspectOptions {
  /** Whether the checksums of a converted folder are compared, which reads all of it. Default `false`. */
  readonly verify?: boolean | undefined;
  /** Stops with `ABORTED`. */
  readonly signal?: AbortSignal | undefined;
}

export interface Inspection {
  readonly path: string;
  /** Whether `convert` made the folder. */
  readonly converted: boolean;
  /** Whether checksums were compared, and all were right. */
  readonly verified: boolean;
  /** The model's parts; none for a file of weights. */
  readonly parts: readonly PartInspection[];
  /** The small files that a model needs. */
  readonly sideFiles: readonly SideFile[];
  /** The weights of a file. */
  readonly tensors: readonly TensorInspection[];
  /** What is wrong: weights that are missing or do not belong there, damaged files. */
  readonly problems: readonly Problem[];
}

export interface PartInspection {
  readonly name: 'visual encoder' | 'token generator' | 'language model';
  /** Its sizes. */
  readonly config: Readonly<Record<string, number | string>>;
  /** Numbers of its weights. */
  readonly parameters: number;
  /** Bytes of its weights in the files. */
  readonly bytes: number;
  /** How many weights have which dtype: `Q4_K`, or `Q4_K interleaved`. */
  readonly dtypes: Readonly<Record<string, number>>;
  /** The file or folder of its weights. */
  readonly source: string | null;
}

export interface SideFile {
  readonly name: string;
  readonly path: string | null;
  /** Whether a model can do without. */
  readonly optional: boolean;
}

export interface TensorInspection {
  readonly name: string;
  /** `null` for one that cannot be read. */
  readonly dtype: string | null;
  readonly shape: readonly number[];
}

export interface Problem {
  readonly code: ErrorCode;
  readonly message: string;
  readonly hint: string | null;
}

/**
 * Looks at a folder or a file. What is wrong with it is a part of the answer.
 *
 * @throws `MODEL_NOT_FOUND` where there is nothing, `INVALID_ARGUMENT` for checksums of a folder that has none, `ABORTED`.
 */
export async function inspect(path: string, options: InspectOptions = {}): Promise<Inspection> {
  const { verify = false, signal } = options;
  return JSON.parse(await withCancellation(signal, (flag) => inspectModel(path, verify, flag)));
}

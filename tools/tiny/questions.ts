// Questions about files of the toy world, and when an answer is right.
import { readFileSync } from 'node:fs';
import { isAbsolute, join } from 'node:path';

/** A line of `qa.jsonl`. */
export interface Row {
  /** Path of the video or picture. */
  media: string;
  kind: string;
  type: string;
  question: string;
  answer: string;
  unseenPhrasing: boolean;
  /** Path of its subtitles. */
  subtitles: string | undefined;
  /** Seconds of the only scene that shows what is asked about, from and to. */
  evidence: readonly [number, number] | undefined;
}

const NEVER_TRAINED = /\b(red star|green cross|blue ring|yellow square|purple circle|orange triangle)/;

/** Reads `qa.jsonl` of a folder; the paths of the rows are then whole. */
export function readRows(folder: string): Row[] {
  const file = join(folder, 'qa.jsonl');
  const lines = readFileSync(file, 'utf8').split('\n');
  return lines.flatMap((line, index) => {
    if (line.trim() === '') return [];
    const wrong = (problem: string) => new Error(`${file}, line ${index + 1}: ${problem}`);
    let row: Record<string, unknown>;
    try {
      row = JSON.parse(line);
    } catch (error) {
      throw wrong(String(error));
    }
    const text = (key: string): string => {
      const value = row[key];
      if (typeof value !== 'string') throw wrong(`${key} is missing`);
      return value;
    };
    const path = (value: string) => (isAbsolute(value) ? value : join(folder, value));
    return {
      media: path(text('media')),
      kind: text('kind'),
      type: text('type'),
      question: text('question'),
      answer: text('answer'),
      unseenPhrasing: row['unseen_phrasing'] === true,
      subtitles: typeof row['subtitles'] === 'string' ? path(row['subtitles']) : undefined,
      evidence: Array.isArray(row['evidence']) ? (row['evidence'] as [number, number]) : undefined,
    };
  });
}

/** Rows by their file, so that each file is decoded and encoded once. */
export function byMedia(rows: readonly Row[]): Row[][] {
  return [...Map.groupBy(rows, (row) => `${row.media}\n${row.subtitles ?? ''}`).values()];
}

/** Whether the question or its answer names a colour and shape that are never together in training. */
export function namesNeverTrainedPair({ question, answer }: Row): boolean {
  return NEVER_TRAINED.test(question.toLowerCase()) || NEVER_TRAINED.test(answer.toLowerCase());
}

export function normalised(answer: string): string {
  return answer.toLowerCase().trim().replaceAll(/\s+/g, ' ');
}

export function isRight(answer: string, truth: string): boolean {
  return normalised(answer) === normalised(truth);
}

/**
 * The share of the scenes of a description that are told right, whatever order a scene's objects have. A scene too many counts
 * as one that is wrong.
 */
export function scenesRight(answer: string, truth: string): number {
  const [told, real] = [scenes(answer), scenes(truth)];
  const right = real.filter((scene, index) => scene === told[index]).length;
  return right / Math.max(told.length, real.length);
}

function scenes(description: string): string[] {
  return normalised(description)
    .split(/ ?, then /)
    .map((scene) => {
      const place = scene.lastIndexOf(' in the ');
      const [objects, background] = place < 0 ? [scene, ''] : [scene.slice(0, place), scene.slice(place)];
      return objects.split(' and ').sort().join(' and ') + background;
    });
}

/**
 * How likely so few right answers (or fewer) are, when each question is answered right with its own probability, the accuracy
 * that is claimed for its kind: the sum of the Poisson binomial distribution from 0 to `right`.
 */
export function likelihoodOfSoFew(accuracies: readonly number[], right: number): number {
  let counts = [1];
  for (const accuracy of accuracies) {
    const next = new Array<number>(counts.length + 1).fill(0);
    for (const [count, probability] of counts.entries()) {
      next[count] = (next[count] ?? 0) + probability * (1 - accuracy);
      next[count + 1] = probability * accuracy;
    }
    counts = next;
  }
  return counts.slice(0, right + 1).reduce((sum, probability) => sum + probability, 0);
}

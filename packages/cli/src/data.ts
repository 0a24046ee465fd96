import process from 'node:process';
import type { DataProblem } from '@llamavid/train';
import { Interrupt } from './interrupt.js';
import { Progress } from './progress.js';
import { writeAnswer, writeJson } from './write-answer.js';

export interface DataCheckFlags {
  images?: string;
  videos?: string;
  skipMedia?: boolean;
  json?: boolean;
  quiet?: boolean;
}

/** `llamavid data check`: exits with 1 when a record is bad. */
export async function dataCheck(list: string, flags: DataCheckFlags): Promise<number> {
  using interrupt = new Interrupt();
  const { checkData } = await import('@llamavid/train');
  const progress = new Progress(flags.quiet ?? false);
  const { images, videos, skipMedia } = flags;
  const onProgress = (done: number, total: number) => progress.count('records', done, total);
  const check = checkData(list, { images, videos, skipMedia, onProgress, signal: interrupt.signal });
  const problems: DataProblem[] = [];
  try {
    for (;;) {
      const { done, value } = await check.next();
      if (done) {
        progress.clear();
        if (flags.json) writeJson({ ...value, problems });
        else process.stdout.write(`${summary(value)}\n`);
        return value.problems > 0 ? 1 : 0;
      }
      // A list of a million bad records must not fill the memory where nobody asked for all of them at once.
      if (flags.json) problems.push(value);
      else {
        progress.clear();
        writeAnswer(`record ${value.index} (${value.id}): ${value.message} [${value.kind}]\n`);
      }
    }
  } finally {
    progress.clear();
  }
}

function summary(counts: {
  records: number;
  problems: number;
  images: number;
  videos: number;
  features: number;
  texts: number;
}): string {
  const { records, problems, images, videos, features, texts } = counts;
  const held = `${images} pictures, ${videos} videos, ${features} feature files, ${texts} of text alone`;
  return `${records} records (${held}); ${problems === 0 ? 'no problems' : `${problems} problems`}`;
}

/** `llamavid data published`: exits with 1 when something is missing. */
export async function dataPublished(root: string, flags: { json?: boolean }): Promise<number> {
  const { publishedData } = await import('@llamavid/train');
  const lists = await publishedData(root);
  const complete = lists.every(({ found, folders }) => found && folders.every((folder) => folder.found));
  if (flags.json) {
    writeJson({ lists, complete });
    return complete ? 0 : 1;
  }
  for (const { name, stage, path, found, folders } of lists) {
    process.stdout.write(`${found ? 'found  ' : 'MISSING'}  stage ${stage}  ${name}  (${path})\n`);
    for (const folder of folders) {
      process.stdout.write(`  ${folder.found ? 'found  ' : 'MISSING'}  ${folder.path}\n`);
    }
  }
  return complete ? 0 : 1;
}

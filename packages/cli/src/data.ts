import process from 'node:process';
import type { DataFinding, DataSummary } from '@llamavid/train';
import { Interrupt } from './interrupt.js';
import { Progress } from './progress.js';
import { writeAnswer, writeJson } from './write-answer.js';

export interface DataCheckFlags {
  images?: string;
  videos?: string;
  recipe?: string;
  llm?: string;
  skipVideos?: boolean;
  json?: boolean;
  quiet?: boolean;
}

/** `llamavid data check`: exits with 1 when a record cannot be trained on. */
export async function dataCheck(list: string, flags: DataCheckFlags): Promise<number> {
  using interrupt = new Interrupt();
  const { checkData } = await import('@llamavid/train');
  const progress = new Progress(flags.quiet ?? false);
  const { images, videos, recipe, llm, skipVideos } = flags;
  const onProgress = (done: number, total: number) => progress.count('records', done, total);
  const check = checkData(list, {
    ...{ images, videos, recipe, languageModel: llm, skipVideos },
    ...{ onProgress, signal: interrupt.signal },
  });
  const findings: DataFinding[] = [];
  try {
    for (;;) {
      const { done, value } = await check.next();
      if (done) {
        progress.clear();
        if (flags.json) writeJson({ ...value, findings });
        else process.stdout.write(`${summaryText(value)}\n`);
        return value.badRecords > 0 ? 1 : 0;
      }
      if (flags.json) findings.push(value);
      else {
        progress.clear();
        writeAnswer(
          `${value.severity}: record ${value.index} (${value.id}): ${value.message} [${value.kind}]\n`,
        );
      }
    }
  } finally {
    progress.clear();
  }
}

function summaryText(summary: DataSummary): string {
  const { records, images, videos, features, texts, badRecords, warnedRecords } = summary;
  return [
    `${records} records: ${images} about pictures, ${videos} about videos, ${features} about features, ${texts} of text alone`,
    `${badRecords} cannot be trained on, ${warnedRecords} have warnings`,
  ].join('\n');
}

/** `llamavid data published`: exits with 1 when something is missing. */
export async function dataPublished(root: string, flags: { json?: boolean }): Promise<number> {
  const { publishedData } = await import('@llamavid/train');
  const published = await publishedData(root);
  const { lists, weights, complete } = published;
  if (flags.json) writeJson(published);
  else {
    const line = (found: boolean, text: string) => `${found ? 'found  ' : 'MISSING'} ${text}\n`;
    for (const { path, stage, setting, about, found, folders } of lists) {
      process.stdout.write(line(found, `${path}: stage ${stage}, ${setting}; ${about}`));
      for (const folder of folders) process.stdout.write(`  ${line(folder.found, folder.path)}`);
    }
    for (const { path, stages, found } of weights) {
      process.stdout.write(line(found, `${path}: weights, stage ${stages.join(', ')}`));
    }
  }
  return complete ? 0 : 1;
}

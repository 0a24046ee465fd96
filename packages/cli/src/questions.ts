import { existsSync } from 'node:fs';
import { readFile, stat } from 'node:fs/promises';
import { LlamaVidError } from '@llamavid/errors';
import { wrong } from './flags.js';

/** A hundred thousand questions have 10 MB; a file far above that is something else. */
const LARGEST_FILE = 64 << 20;

/** The files and the questions of a command line: in `file` if there is one, else behind the files. */
export async function readQuestions(
  words: readonly string[],
  file: string | undefined,
): Promise<{ paths: readonly string[]; questions: readonly string[] }> {
  if (file !== undefined) return { paths: words, questions: await questionsIn(file) };
  const last = words.at(-1) ?? '';
  if (words.length === 1 && existsSync(last)) {
    throw wrong(`the question about ${last} is missing`, 'llamavid ask <media...> "<question>"');
  }
  let first = words.length - 1;
  while (first > 0 && isQuestion(words[first - 1] ?? '')) first -= 1;
  const questions = words.slice(Math.max(0, first));
  if (questions.length === 0 || questions.some((question) => question.trim() === '')) {
    throw wrong('the question is empty', 'Put it in quotes behind the files.');
  }
  return { paths: words.slice(0, first), questions };
}

/** In front of the last word, which always is a question: several words or a question mark, and not what a path looks like. */
function isQuestion(word: string): boolean {
  return /\s|\?$/.test(word) && !/^[.~]?[./\\]|\.\w{2,5}$/.test(word) && !existsSync(word);
}

/** Questions of a file: one a line, or in a `.jsonl` file one JSON text or object with a `question` a line. */
async function questionsIn(file: string): Promise<string[]> {
  const invalid = (problem: string, cause?: unknown) =>
    new LlamaVidError('DATA_INVALID', `${file}: ${problem}`, {
      hint: 'Write one question a line; in a .jsonl file as {"question": "…"}.',
      cause,
    });
  let text: string;
  try {
    if ((await stat(file)).size > LARGEST_FILE) throw invalid(`is above ${LARGEST_FILE} bytes`);
    text = new TextDecoder('utf-8', { fatal: true }).decode(await readFile(file));
  } catch (error) {
    if (error instanceof LlamaVidError) throw error;
    const { code, message } = error as NodeJS.ErrnoException;
    if (code !== 'ENOENT') throw invalid(`cannot be read: ${message}`, error);
    throw new LlamaVidError('MEDIA_NOT_FOUND', `${file}: there is no such file of questions`, {
      hint: 'Check the path behind --questions.',
    });
  }
  const questions: string[] = [];
  for (const [index, line] of text.split(/\r?\n/).entries()) {
    if (line.trim() === '') continue;
    const question = /\.jsonl$/i.test(file) ? questionOf(line) : line.trim();
    if (question === undefined || question.includes('\0')) {
      throw invalid(`line ${index + 1} holds no question`);
    }
    questions.push(question);
  }
  if (questions.length === 0) throw invalid('holds no question');
  return questions;
}

function questionOf(line: string): string | undefined {
  try {
    const value: unknown = JSON.parse(line);
    const question =
      typeof value === 'object' && value !== null && 'question' in value ? value.question : value;
    return typeof question === 'string' && question.trim() !== '' ? question : undefined;
  } catch {
    return undefined;
  }
}

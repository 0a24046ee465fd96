import process from 'node:process';

/** What moves a terminal's cursor, rings its bell or changes its settings; tabs and line ends stay. */
const CONTROL = /(?![\t\n\r])\p{Cc}/gu;

/** Writes a piece of an answer. A model can be made to say anything, so it does not get hold of a terminal. */
export function writeAnswer(text: string): void {
  process.stdout.write(process.stdout.isTTY ? text.replace(CONTROL, '\ufffd') : text);
}

/** Writes the one object of `--json`. */
export function writeJson(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value)}\n`);
}

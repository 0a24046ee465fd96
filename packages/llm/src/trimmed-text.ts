/** White space as the reference's `str.strip` knows it, which is not quite what `String.prototype.trim` knows. */
const SPACE = '[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]';
const LEADING = new RegExp(`^${SPACE}+`, 'u');
const TRAILING = new RegExp(`${SPACE}+$`, 'u');

/** Text that grows and never shows white space at either end: what `push` returned, joined, is always `whole`. */
export class TrimmedText {
  #whole = '';
  #heldBack = '';

  get whole(): string {
    return this.#whole;
  }

  /** Takes the next piece and returns what may be shown of it. */
  push(piece: string): string {
    let text = this.#heldBack + piece;
    if (this.#whole === '') text = text.replace(LEADING, '');
    const shown = text.replace(TRAILING, '');
    this.#heldBack = text.slice(shown.length);
    this.#whole += shown;
    return shown;
  }
}

import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

export const fixtures = join(import.meta.dirname, '../../../fixtures');

export interface OracleCase {
  id: string;
  conversation: string;
  turns: [question: string, answer: string | null][];
  prompt: string;
  qformer_prompts: string[][] | null;
  spliced_length: number;
  greedy_ids: number[];
  text: string;
  file?: string;
}

/** A case folder of the oracle as a user's model folder: its files, and its sizes in config.json. */
export class OracleModel implements Disposable {
  readonly folder: string;
  readonly cases: OracleCase[];
  readonly #variant: string;

  /** `more` goes into the `llamavid` block of the configuration. */
  constructor(variant: string, more: object = {}) {
    this.#variant = variant;
    const source = join(fixtures, 'oracle', variant);
    const { cases, sizes } = JSON.parse(readFileSync(join(source, 'cases.json'), 'utf8'));
    this.cases = cases;
    this.folder = mkdtempSync(join(tmpdir(), 'llamavid-model-'));
    cpSync(join(source, 'model'), this.folder, { recursive: true });
    for (const name of ['eva_vit_g.pth', 'bert', 'processor']) {
      cpSync(join(source, name), join(this.folder, name), { recursive: true });
    }
    const config = JSON.parse(readFileSync(join(this.folder, 'config.json'), 'utf8'));
    config.llamavid = {
      vision: {
        imageSize: sizes.image_size,
        patchSize: 14,
        width: sizes.vit_dim,
        depth: sizes.vit_depth,
        heads: sizes.vit_heads,
        mlpWidth: sizes.vit_mlp_hidden,
        positionSide: sizes.pos_side,
      },
      query: {
        width: sizes.bert_dim,
        layers: sizes.bert_layers,
        heads: sizes.bert_heads,
        mlpWidth: sizes.bert_inter,
      },
      ...more,
    };
    writeFileSync(join(this.folder, 'config.json'), JSON.stringify(config));
  }

  find(id: string): OracleCase {
    const found = this.cases.find((each) => each.id === id);
    if (found === undefined) throw new Error(`the oracle has no case ${id}`);
    return found;
  }

  /** Path of the picture of a case. */
  picture(found: OracleCase): string {
    return join(fixtures, 'oracle', this.#variant, found.file ?? '');
  }

  [Symbol.dispose](): void {
    rmSync(this.folder, { recursive: true, force: true });
  }
}

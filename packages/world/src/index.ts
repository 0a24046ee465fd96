export {
  type NeverTrained,
  type Phrasing,
  type RenderedWorld,
  type RenderWorldOptions,
  type RenderWorldProgress,
  renderWorld,
  type WorldKind,
  worldKinds,
} from './render-world.js';
export type { QuestionRow, TrainingRecord } from './rows.js';

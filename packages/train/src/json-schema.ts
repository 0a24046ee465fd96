/** The keywords of JSON Schema that `recipe.schema.json` uses; others are refused, so that none is overlooked. */
export interface Schema {
  type?: string | string[];
  enum?: (string | number)[];
  required?: string[];
  properties?: Record<string, Schema>;
  additionalProperties?: false | Schema;
  items?: Schema;
  minItems?: number;
  maxItems?: number;
  minLength?: number;
  pattern?: string;
  minimum?: number;
  exclusiveMinimum?: number;
  maximum?: number;
  exclusiveMaximum?: number;
  $schema?: string;
  title?: string;
  description?: string;
}

const KEYWORDS = new Set([
  ...['type', 'enum', 'required', 'properties', 'additionalProperties', 'items', 'minItems', 'maxItems'],
  ...['minLength', 'pattern', 'minimum', 'exclusiveMinimum', 'maximum', 'exclusiveMaximum'],
  ...['$schema', 'title', 'description'],
]);

/** What of `value` is not as `schema` says: one sentence each, with the place (`optimizer.learningRate`). */
export function violations(value: unknown, schema: Schema, place = ''): string[] {
  const unknown = Object.keys(schema).find((keyword) => !KEYWORDS.has(keyword));
  if (unknown !== undefined) throw new TypeError(`the schema's keyword ${unknown} is not supported`);
  const name = place === '' ? 'the recipe' : place;
  const types = schema.type === undefined ? [] : [schema.type].flat();
  if (types.length > 0 && !types.some((type) => isOfType(value, type))) {
    return [
      `${name} is ${show(value)}, but must be ${types.map((type) => TYPE_NAMES[type] ?? type).join(' or ')}`,
    ];
  }
  if (value === null) return [];
  if (schema.enum !== undefined && !schema.enum.some((one) => one === value)) {
    return [`${name} is ${show(value)}, but must be one of ${schema.enum.join(', ')}`];
  }
  if (typeof value === 'number')
    return outOfRange(value, schema).map((rule) => `${name} is ${value}, but must be ${rule}`);
  if (typeof value === 'string') {
    const fits = schema.pattern === undefined || new RegExp(schema.pattern, 'u').test(value);
    if (fits && value.length >= (schema.minLength ?? 0)) return [];
    return [`${name} is ${show(value)}, but must ${fits ? 'not be empty' : `match ${schema.pattern}`}`];
  }
  if (Array.isArray(value)) return inArray(value, schema, name, place);
  if (typeof value === 'object') return inObject(value as Record<string, unknown>, schema, name, place);
  return [];
}

const TYPE_NAMES: Record<string, string> = {
  object: 'an object',
  array: 'a list',
  integer: 'a whole number',
  number: 'a number',
  string: 'a text',
  boolean: 'true or false',
};

function isOfType(value: unknown, type: string): boolean {
  switch (type) {
    case 'null':
      return value === null;
    case 'integer':
      return Number.isSafeInteger(value);
    case 'number':
      return Number.isFinite(value);
    case 'array':
      return Array.isArray(value);
    case 'object':
      return typeof value === 'object' && value !== null && !Array.isArray(value);
    default:
      return typeof value === type;
  }
}

function outOfRange(value: number, schema: Schema): string[] {
  const { minimum, exclusiveMinimum, maximum, exclusiveMaximum } = schema;
  const rules: string[] = [];
  if (minimum !== undefined && value < minimum) rules.push(`${minimum} or above`);
  if (exclusiveMinimum !== undefined && value <= exclusiveMinimum) rules.push(`above ${exclusiveMinimum}`);
  if (maximum !== undefined && value > maximum) rules.push(`${maximum} or below`);
  if (exclusiveMaximum !== undefined && value >= exclusiveMaximum) rules.push(`below ${exclusiveMaximum}`);
  return rules;
}

function inArray(value: unknown[], schema: Schema, name: string, place: string): string[] {
  const { items, minItems = 0, maxItems = Number.POSITIVE_INFINITY } = schema;
  if (value.length < minItems || value.length > maxItems) {
    return [
      `${name} has ${value.length} values, but must have ${minItems === maxItems ? minItems : `${minItems} or more`}`,
    ];
  }
  return items === undefined
    ? []
    : value.flatMap((one, index) => violations(one, items, `${place}[${index}]`));
}

function inObject(value: Record<string, unknown>, schema: Schema, name: string, place: string): string[] {
  const { required = [], properties = {}, additionalProperties } = schema;
  const within = (key: string) => (place === '' ? key : `${place}.${key}`);
  const missing = required
    .filter((key) => value[key] === undefined)
    .map((key) => `${within(key)} is missing in ${name}`);
  const wrong = Object.entries(value).flatMap(([key, one]) => {
    if (one === undefined) return [];
    const known = Object.hasOwn(properties, key) ? properties[key] : additionalProperties;
    if (known === false)
      return [`${within(key)} is not known; known are ${Object.keys(properties).join(', ')}`];
    return known === undefined ? [] : violations(one, known, within(key));
  });
  return [...missing, ...wrong];
}

function show(value: unknown): string {
  if (typeof value === 'number') return String(value);
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 60 ? `${text.slice(0, 57)}…` : text;
}

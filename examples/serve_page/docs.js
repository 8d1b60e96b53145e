// Draws /openapi.json as tables. Written here because the usual viewers load their scripts from another host.
function element(tag, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = className;
  return made;
}

const named = (schema) => (schema?.$ref ?? "").split("/").pop();

// "whole number, 1 to 512" of a JSON schema.
function describe(schema) {
  if (named(schema)) return named(schema);
  if (schema.anyOf) return schema.anyOf.map(describe).join(" or ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(", ");
  if (schema.type === "array") return `list of ${describe(schema.items)}${range(schema.minItems, schema.maxItems, " entries")}`;
  if (schema.type === "object") return schema.additionalProperties ? `{name: ${describe(schema.additionalProperties)}}` : "object";
  const kind = { integer: "whole number", number: "number", string: schema.format ?? "text", null: "nothing", boolean: "true or false" }[schema.type];
  const above = schema.exclusiveMinimum === undefined ? "" : `, above ${schema.exclusiveMinimum}`;
  const below = schema.exclusiveMaximum === undefined ? "" : `, below ${schema.exclusiveMaximum}`;
  return `${kind ?? "anything"}${above}${below}${range(schema.minimum, schema.maximum)}`;
}

function range(low, high, unit = "") {
  if (low !== undefined && high !== undefined) return `, ${low} to ${high}${unit}`;
  return low !== undefined ? `, at least ${low}${unit}` : high !== undefined ? `, at most ${high}${unit}` : "";
}

function fields(name, schema) {
  const part = document.createElement("section");
  part.append(element("h3", name), element("p", schema.description ?? ""));
  const table = element("table", "", "fields");
  const head = document.createElement("tr");
  head.append(...["field", "value", "default", ""].map((title) => element("th", title)));
  table.append(head);
  for (const [key, field] of Object.entries(schema.properties ?? {})) {
    const row = document.createElement("tr");
    const fallback = (schema.required ?? []).includes(key) ? "required" : JSON.stringify(field.default ?? null);
    row.append(...[key, describe(field), fallback, field.description ?? ""].map((text) => element("td", text)));
    table.append(row);
  }
  part.append(table);
  return part;
}

const api = await (await fetch("/openapi.json")).json();
const place = document.getElementById("paths");
const bar = (hour, close) => `{"timestamp": "2024-01-01T0${hour}:00:00", "open": 100, "high": 103, "low": 99, "close": ${close}}`;
document.getElementById("example").textContent =
  `curl ${location.origin}/predict -H 'content-type: application/json' -d '{"horizon": 2, "bars": [\n  ${[bar(0, 101), bar(1, 102), bar(2, 100)].join(",\n  ")}]}'\n` +
  `curl '${location.origin}/bars?name=mine.csv' --data-binary @mine.csv`;
for (const [path, methods] of Object.entries(api.paths)) {
  for (const [method, told] of Object.entries(methods)) {
    const named = (told.parameters ?? []).map(({ name, schema }) => `${name}: ${describe(schema)}`).join("; ");
    place.append(element("h2", `${method.toUpperCase()} ${path}`), element("p", told.description ?? told.summary), element("p", named, "quiet"));
  }
}
const order = ["Question", "Bar", "Forecast"]; // what one sends, and what comes back
const schemas = Object.entries(api.components.schemas).sort(([a], [b]) => (order.indexOf(a) + 9) % 9 - ((order.indexOf(b) + 9) % 9));
place.append(...schemas.map(([name, schema]) => fields(name, schema)));

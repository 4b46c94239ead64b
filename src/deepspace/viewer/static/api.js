// What the page asks of the server. Every failure becomes an Error with a sentence for the user.

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, { credentials: "same-origin", ...options });
  } catch {
    throw new Error("The viewer does not answer: is `deepspace view` still running?");
  }
  if (answer.ok) return answer;
  let why = `status ${answer.status}`;
  try {
    why = (await answer.json()).error;
  } catch {
    // an answer without words keeps its number
  }
  throw new Error(why);
}

const post = (path, body) =>
  ask(path, {
    method: "POST",
    body: JSON.stringify(body),
    headers: { "content-type": "application/json" },
  });

export const project = async () => (await ask("/api/project")).json();

export const image = async (id) => (await ask(`/api/images/${id}`)).json();

export async function genes(set, text, limit = 40) {
  const query = new URLSearchParams({ set, q: text, limit });
  return (await ask(`/api/genes?${query}`)).json();
}

/** x and y of every point, in turn. */
export async function points(set) {
  return new Float32Array(await (await ask(`/api/sets/${set}/points`)).arrayBuffer());
}

/** Values of a layer with the range to show them in. */
export async function values(set, layer, gene) {
  const query = new URLSearchParams(gene ? { layer, gene } : { layer });
  const answer = await ask(`/api/sets/${set}/values?${query}`);
  return {
    values: new Float32Array(await answer.arrayBuffer()),
    low: Number(answer.headers.get("x-low")),
    high: Number(answer.headers.get("x-high")),
    unit: answer.headers.get("x-unit"),
  };
}

export async function point(set, index, gene) {
  const query = gene ? `?${new URLSearchParams({ gene })}` : "";
  return (await ask(`/api/sets/${set}/point/${index}${query}`)).json();
}

export const region = async (set, body) => (await post(`/api/sets/${set}/region`, body)).json();

export async function regionFile(set, kind, body) {
  return (await post(`/api/sets/${set}/region.${kind}`, body)).blob();
}

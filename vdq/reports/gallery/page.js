
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const at = (id) => document.getElementById(id);
  const reference = data.runs.find((run) => run.signature === run.reference);
  const others = data.runs.filter((run) => run !== reference);
  const columns = [reference, ...others];
  const methods = [...new Set(others.map((run) => run.quant))];
  const bits = [...new Set(others.map((run) => run.bits))];
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const start = { speed: "1", size: matchMedia("(max-width: 640px)").matches ? "96" : "128", gain: 4 };

  // Everything a reader can choose; `open` is the large view's [column, prompt].
  const state = {
    frame: 0, playing: !calm, ...start, difference: false,
    methods: new Set(methods), bits: new Set(bits), query: "", open: null,
  };

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  // ---- Videos: a sheet behind a window of one frame; --x and --y on the page move all sheets at once.

  function view(run, prompt, kind) {
    const name = `media/${run.signature}_${String(prompt.index).padStart(4, "0")}_${kind}.avif`;
    // Off the screen an image is not loaded, nor one that is not displayed.
    const image = make("img", { loading: "lazy", decoding: "async", alt: "", src: name });
    return make("span", { class: `view ${kind}` }, image);
  }

  function values(run, prompt, metrics) {
    const found = prompt === null ? run.set : run.videos[prompt];
    const list = make("dl", { class: "values" });
    for (const { key, label } of metrics) {
      list.append(make("div", {}, make("dt", {}, label), make("dd", {}, found[key] ?? "–")));
    }
    return list;
  }

  const nameOf = (run) => (run === reference ? "Full precision" : [run.quant, run.changed].filter(Boolean).join(" "));
  const brief = data.metrics.filter((metric) => metric.brief);

  function head(run) {
    const inside = make("div", { class: "head" }, make("b", {}, nameOf(run)));
    inside.append(make("span", { class: "badge" }, run === reference ? "reference" : run.bits));
    inside.append(values(run, null, brief), make("small", {}, make("code", {}, run.signature)));
    const kind = run === reference ? run.quant : run.kind;
    return make("th", { scope: "col", title: `${run.quant} ${run.bits}, ${kind}, run ${run.signature}` }, inside);
  }

  function cell(column, row) {
    const run = columns[column];
    const prompt = data.prompts[row];
    const stack = make("span", { class: "stack" }, view(run, prompt, "video"));
    if (run !== reference) stack.append(view(run, prompt, "difference"));
    const scores = brief.map(({ key, label }) => `${label} ${run.videos[row][key] ?? "–"}`).join(", ");
    const label = `${nameOf(run)} ${run.bits}: ${prompt.text} ${scores}. Enter for a large view.`;
    const button = make("button", { type: "button", class: "open", "aria-label": label }, stack);
    button.addEventListener("click", () => update({ open: [column, row] }));
    return make("td", {}, button, values(run, row, brief));
  }

  const heads = columns.map(head);
  const rows = data.prompts.map((prompt, row) => {
    const cells = columns.map((_, column) => cell(column, row));
    cells[0].classList.add("reference");
    const attributes = { class: "prompt", scope: "rowgroup", colspan: columns.length };
    const title = make("th", attributes, make("span", {}, prompt.text));
    const body = make("tbody", {}, make("tr", {}, title), make("tr", {}, ...cells));
    return { prompt, cells, body };
  });
  heads[0].classList.add("reference");
  at("heads").append(...heads);
  at("grid").querySelector("table").append(...rows.map((row) => row.body));

  // ---- Playback: one frame number for the whole page.

  function showFrame(frame) {
    state.frame = ((frame % data.frames) + data.frames) % data.frames;
    const x = state.frame % data.columns;
    const y = (state.frame - x) / data.columns;
    for (const place of [at("grid"), at("large")]) {
      place.style.setProperty("--x", x);
      place.style.setProperty("--y", y);
    }
    at("frame").value = state.frame;
    for (const output of [at("position"), at("large-position")]) output.value = `${state.frame + 1} / ${data.frames}`;
  }

  let last = 0;
  let due = 0;
  function tick(now) {
    if (!state.playing) return;
    // A tab that was hidden goes on where it stopped.
    due += (Math.min(now - last, 500) * data.fps * state.speed) / 1000;
    last = now;
    const whole = Math.floor(due);
    due -= whole;
    if (whole) showFrame(state.frame + whole);
    requestAnimationFrame(tick);
  }

  function play(playing) {
    const starts = playing && !state.playing;
    state.playing = playing;
    for (const button of [at("play"), at("large-play")]) button.textContent = playing ? "❚❚ Pause" : "▶ Play";
    if (starts) requestAnimationFrame((now) => { last = now; due = 0; tick(now); });
    saveHash();
  }

  function step(by) {
    play(false);
    showFrame(state.frame + by);
    saveHash();
  }

  // ---- Filters, and what is open: `update` changes the state, then the page and the address follow.

  const shown = (run) => run === reference || (state.methods.has(run.quant) && state.bits.has(run.bits));
  const words = () => state.query.toLowerCase().split(/\s+/).filter(Boolean);
  const matches = (prompt) => words().every((word) => prompt.text.toLowerCase().includes(word));

  function update(change) {
    Object.assign(state, change);
    columns.forEach((run, column) => {
      const hidden = !shown(run);
      heads[column].hidden = hidden;
      for (const row of rows) row.cells[column].hidden = hidden;
    });
    for (const row of rows) row.body.hidden = !matches(row.prompt);
    const visible = rows.filter((row) => !row.body.hidden).length;
    at("empty").hidden = visible > 0;
    at("count").textContent =
      `${others.filter(shown).length} of ${others.length} runs, ${visible} of ${rows.length} prompts`;
    at("difference").setAttribute("aria-pressed", state.difference);
    at("grid").classList.toggle("show-difference", state.difference);
    root.style.setProperty("--size", `${state.size}px`);
    root.style.setProperty("--amplify", `url(#gain${state.gain})`);
    for (const input of document.querySelectorAll("[data-set]")) {
      const { set } = input.dataset;
      if (input.type === "checkbox") input.checked = state[set].has(input.value);
      else if (input.type === "radio") input.checked = Number(input.value) === state.gain;
      else if (input.value !== state[set]) input.value = state[set];
    }
    showLarge();
    saveHash();
  }

  function chips(name, choices) {
    const place = at(name);
    for (const choice of choices) {
      const input = make("input", { type: "checkbox", value: choice, "data-set": name });
      input.addEventListener("change", () => {
        const chosen = new Set(state[name]);
        if (input.checked) chosen.add(choice); else chosen.delete(choice);
        update({ [name]: chosen });
      });
      place.append(make("label", { class: "chip" }, input, choice));
    }
    for (const [label, chosen] of [["all", choices], ["none", []]]) {
      const button = make("button", { type: "button", "aria-label": `${label} ${name}` }, label);
      button.addEventListener("click", () => update({ [name]: new Set(chosen) }));
      place.append(button);
    }
  }

  function gains(id) {
    for (const gain of data.gains) {
      const input = make("input", { type: "radio", name: id, value: gain, "data-set": "gain" });
      input.addEventListener("change", () => update({ gain }));
      at(id).append(make("label", {}, input, `×${gain}`));
    }
  }

  function amplify(by) {
    const place = data.gains.indexOf(state.gain) + by;
    if (place in data.gains) update({ gain: data.gains[place] });
  }

  // ---- The large view.

  const moves = [["left", 0, -1], ["right", 0, 1], ["up", 1, -1], ["down", 1, 1]];

  function panel(caption, run, prompt, kind) {
    return make("figure", {}, make("figcaption", {}, caption), view(run, prompt, kind));
  }

  function showLarge() {
    const dialog = at("large");
    if (!state.open) {
      if (dialog.open) dialog.close();
      return;
    }
    const [column, row] = state.open;
    const run = columns[column];
    const prompt = data.prompts[row];
    at("large-title").replaceChildren(
      `${nameOf(run)} `, make("span", { class: "badge" }, run.bits), " ",
      make("code", {}, `${run.kind}, run ${run.signature}`));
    at("large-prompt").textContent = prompt.text;
    const panels = [panel("Full precision (reference)", reference, prompt, "video")];
    if (run !== reference) {
      panels.push(panel(`${nameOf(run)} ${run.bits}`, run, prompt, "video"));
      panels.push(panel(`Difference ×${state.gain}`, run, prompt, "difference"));
    }
    dialog.querySelector(".panels").replaceChildren(...panels);
    at("large-values").replaceChildren(...largeValues(run, row));
    for (const [id, axis, by] of moves) at(id).disabled = !next(axis, by);
    if (!dialog.open) dialog.showModal();
  }

  function largeValues(run, row) {
    const numbers = run === reference
      ? [["This video", run.videos[row]], ["All prompts", run.set]]
      : [["This video", run.videos[row]], ["Its reference", reference.videos[row]],
        ["All prompts", run.set], ["Reference, all prompts", reference.set]];
    const titles = data.metrics.map(({ label, up }) => make("th", { scope: "col" }, `${label} ${up ? "↑" : "↓"}`));
    const body = numbers.map(([title, found]) => make("tr", {}, make("th", { scope: "row" }, title),
      ...data.metrics.map(({ key }) => make("td", {}, found[key] ?? "–"))));
    return [make("thead", {}, make("tr", {}, make("td"), ...titles)), make("tbody", {}, ...body)];
  }

  // The next [column, prompt] that is not filtered out along an axis (0 columns, 1 prompts), or null.
  function next(axis, by, from = state.open) {
    const place = [...from];
    for (;;) {
      place[axis] += by;
      if (!(place[0] in columns && place[1] in rows)) return null;
      if (axis === 0 ? shown(columns[place[0]]) : matches(data.prompts[place[1]])) return place;
    }
  }

  function focused() {
    const element = document.activeElement.closest("td");
    const row = rows.findIndex(({ cells }) => cells.includes(element));
    return row < 0 ? null : [rows[row].cells.indexOf(element), row];
  }

  function move(axis, by) {
    const from = state.open ?? focused();
    const place = from && next(axis, by, from);
    if (!place) return from !== null;
    if (state.open) update({ open: place });
    else rows[place[1]].cells[place[0]].firstChild.focus();
    return true;
  }

  at("large").addEventListener("close", () => {
    const open = state.open;
    if (!open) return;
    update({ open: null });
    const button = rows[open[1]].cells[open[0]].firstChild;
    button.focus({ preventScroll: true });
    button.scrollIntoView({ block: "nearest", inline: "nearest" });
  });
  at("large").addEventListener("click", (event) => { if (event.target === at("large")) at("large").close(); });

  // ---- The address keeps the view, so that it can be shared.

  let saving = 0;
  function saveHash() {
    // Browsers refuse many changes in a row, as a key that is held down would make.
    clearTimeout(saving);
    saving = setTimeout(writeHash, 150);
  }

  function writeHash() {
    const parts = new URLSearchParams();
    if (state.methods.size < methods.length) parts.set("methods", [...state.methods].join());
    if (state.bits.size < bits.length) parts.set("bits", [...state.bits].join());
    if (state.query) parts.set("prompts", state.query);
    if (state.difference) parts.set("show", "difference");
    for (const name of ["gain", "speed", "size"]) if (state[name] !== start[name]) parts.set(name, state[name]);
    if (!state.playing) parts.set("frame", state.frame);
    if (state.open) parts.set("open", `${columns[state.open[0]].signature}.${data.prompts[state.open[1]].index}`);
    const hash = `#${parts.toString().replaceAll("%2C", ",")}`;
    if (hash !== location.hash) history.replaceState(null, "", hash === "#" ? location.pathname : hash);
  }

  function readHash() {
    const parts = new URLSearchParams(location.hash.slice(1));
    const subset = (name, all) => {
      const chosen = parts.get(name)?.split(",") ?? all;
      return new Set(all.filter((choice) => chosen.includes(choice)));
    };
    const one = (name, allowed) => (allowed.includes(parts.get(name)) ? parts.get(name) : start[name]);
    const options = (id) => [...at(id).options].map((option) => option.value);
    const [signature, index] = (parts.get("open") ?? ".").split(".");
    const open = [columns.findIndex((run) => run.signature === signature),
      data.prompts.findIndex((prompt) => String(prompt.index) === index)];
    const change = {
      methods: subset("methods", methods), bits: subset("bits", bits), query: parts.get("prompts") ?? "",
      difference: parts.get("show") === "difference", open: open.includes(-1) ? null : open,
      gain: Number(one("gain", data.gains.map(String))),
      speed: one("speed", options("speed")), size: one("size", options("size")),
    };
    const frame = Number.parseInt(parts.get("frame"), 10);
    if (frame >= 0) showFrame(frame);
    state.playing = !(calm || frame >= 0);
    update(change);
  }

  // ---- Controls.

  function choose(id, name, event) {
    at(id).dataset.set = name;
    at(id).addEventListener(event, () => update({ [name]: at(id).value }));
  }

  function press(id, action) {
    at(id).addEventListener("click", action);
  }

  const toggle = () => play(!state.playing);
  for (const prefix of ["", "large-"]) {
    press(`${prefix}play`, toggle);
    press(`${prefix}back`, () => step(-1));
    press(`${prefix}forward`, () => step(1));
    gains(`${prefix}gains`);
  }
  press("difference", () => update({ difference: !state.difference }));
  press("close", () => at("large").close());
  for (const [id, axis, by] of moves) press(id, () => move(axis, by));
  at("frame").max = data.frames - 1;
  at("frame").addEventListener("input", () => { const frame = at("frame").valueAsNumber; step(frame - state.frame); });
  choose("speed", "speed", "change");
  choose("size", "size", "change");
  choose("query", "query", "input");
  chips("methods", methods);
  chips("bits", bits);
  // The address belongs to the filters, so the link does by script what it otherwise does by the address.
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    rows[0].cells[0].firstChild.focus();
  });

  const keys = {
    " ": toggle,
    ArrowLeft: () => step(-1),
    ArrowRight: () => step(1),
    ArrowUp: () => move(1, -1),
    ArrowDown: () => move(1, 1),
    p: () => move(0, -1),
    n: () => move(0, 1),
    d: () => update({ difference: !state.difference }),
    "+": () => amplify(1),
    "=": () => amplify(1),
    "-": () => amplify(-1),
    "/": () => { at("query").focus(); },
  };

  document.addEventListener("keydown", (event) => {
    const { key, target } = event;
    if (event.ctrlKey || event.metaKey || event.altKey || target.closest("input[type=search], select")) return;
    // What a control does with these keys goes first; but on a video Space plays, like everywhere else.
    if (key.startsWith("Arrow") && target.closest("input, .scroll")) return;
    if (key === " " && target.closest("input, button:not(.open), summary, a")) return;
    const action = keys[key.length === 1 ? key.toLowerCase() : key];
    // `false` is a move without a video to start from: the page scrolls as usual.
    if (action && action() !== false) event.preventDefault();
  });
  // Firefox presses a button at the key's release.
  document.addEventListener("keyup", (event) => {
    if (event.key === " " && event.target.closest(".open")) event.preventDefault();
  });
  addEventListener("hashchange", () => { readHash(); play(state.playing); });

  for (const [name, value] of Object.entries({
    "--columns": data.columns, "--rows": Math.ceil(data.frames / data.columns),
    "--aspect": `${data.tile[0]} / ${data.tile[1]}`,
  })) root.style.setProperty(name, value);
  root.classList.toggle("small-frames", Math.max(...data.tile) <= 128);
  at("filters").open = !matchMedia("(max-width: 640px)").matches;
  showFrame(0);
  readHash();
  const playing = state.playing;
  state.playing = false;
  play(playing);
})();

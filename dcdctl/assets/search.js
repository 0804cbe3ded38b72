"use strict";
// The query is in the address (?q=words or ?row=12, also=words and not=words for its other parts, and where=CONDITION for each filter), so that a
// link shows what its sender saw. An uploaded image cannot be in the address; it is kept as long as the page is open. Without a query the images
// are listed by date. All text is set as text, never as HTML.
(() => {
  const element = (id) => document.getElementById(id);
  const [form, words, file, status, results, more, drop] = ["search", "words", "file", "status", "results", "more", "drop"].map(element);
  const [queryImage, queryThumbnail, queryName] = [element("query-image"), ...element("query-image").children];
  const limits = Object.fromEntries(Object.entries(document.body.dataset).map(([name, value]) => [name, Number(value)]));
  const [facets, refine, weakness, viewer] = ["facets", "refine", "weak", "viewer"].map(element);
  const PARTS = ["also", "not"];
  // Columns that people filter by first, and those that are shown as date and place.
  const FIRST_FILTERS = ["year", "camera", "city", "country"];
  const [WHEN, WHERE] = [["taken", "year"], ["city", "country"]];
  const [examples, heading] = [element("examples"), document.querySelector("h1").textContent];
  // Only for an index with the words of captions and file names.
  const hybrid = element("hybrid");
  const sample = JSON.parse(results.dataset.sample);
  const uploads = [];
  const instructions = status.textContent;
  let running = new AbortController();
  let k = limits.k;
  let isFocusPending = false;

  function current() {
    const address = new URLSearchParams(location.search);
    const parts = Object.fromEntries(PARTS.map((part) => [part, address.getAll(part)]));
    const upload = uploads[history.state?.upload];
    if (upload) return { upload, ...parts };
    if (address.has("row")) return { row: address.get("row"), ...parts };
    const text = address.get("q")?.trim() ? address.get("q") : undefined;
    return text === undefined ? {} : { text, ...parts, ...(address.has("hybrid") ? { hybrid: true } : {}) };
  }

  const isCombined = (query) => PARTS.some((part) => query[part]?.length);
  const conditions = () => new URLSearchParams(location.search).getAll("where");

  // Go to a query; the conditions stay unless others are given.
  function go(query, state = null, where = conditions()) {
    k = limits.k;
    const address = new URLSearchParams(query);
    where.forEach((condition) => address.append("where", condition));
    history.pushState(state, "", `?${address}`);
    search();
  }

  function say(text, isWrong = false, warning = "") {
    status.textContent = text;
    status.classList.toggle("wrong", isWrong);
    weakness.textContent = warning;
    weakness.hidden = !warning;
  }

  function request({ text, row, upload, hybrid: isHybrid, ...parts }, signal) {
    const address = new URLSearchParams({ k });
    if (text !== undefined) address.set("text", text);
    if (row !== undefined) address.set("row", row);
    if (isHybrid && !isCombined(parts)) address.set("hybrid", "true");
    PARTS.forEach((part) => parts[part].forEach((words) => address.append(part, words)));
    conditions().forEach((condition) => address.append("where", condition));
    if (!upload) return fetch(`search?${address}`, { signal });
    const body = new FormData();
    body.append("image", upload);
    return fetch(`search?${address}`, { method: "POST", body, signal });
  }

  async function search(offset = 0) {
    running.abort();
    const query = current();
    const hasQuery = Object.keys(query).length > 0;
    showQuery(query);
    showConditions();
    more.hidden = true;
    if (!hasQuery && !limits.isListed) {
      results.replaceChildren(...sample.map((image) => card(image)));
      return say(conditions().length ? "The filter applies to the next search. Type what an image shows, or drop an image here." : instructions);
    }
    const { signal } = (running = new AbortController());
    if (!offset) results.classList.add("stale");
    if (hasQuery) say("Searching\u2026");
    try {
      const response = await (hasQuery ? request(query, signal) : list(offset, signal));
      const answer = await response.json();
      if (!response.ok) throw new Error(answer.error);
      if (hasQuery) showAnswer(answer, query);
      else showList(answer, offset);
    } catch (error) {
      if (signal.aborted) return;
      results.replaceChildren();
      say(error instanceof TypeError ? "The server does not answer. Is it still running?" : error.message, true);
    } finally {
      if (!signal.aborted) results.classList.remove("stale");
    }
  }

  function list(offset, signal) {
    const address = new URLSearchParams({ k, offset });
    conditions().forEach((condition) => address.append("where", condition));
    return fetch(`browse?${address}`, { signal });
  }

  // A page of the images without a query, with the month above the first image of each.
  function showList({ results: hits, captions, total }, offset) {
    const count = total === 1 ? "1 image" : `${total.toLocaleString()} images`;
    say(conditions().length ? `${total ? count : "No image"} ${total === 1 || !total ? "meets" : "meet"} the condition` : instructions);
    results.classList.remove("weak", "by-text");
    let last = offset ? [...results.querySelectorAll(".month")].at(-1)?.textContent : undefined;
    // Images without a date come last: if the first has none, none of them has one.
    const hasDates = offset ? last !== undefined : ISO.test(hits[0]?.columns.taken ?? "");
    const items = hits.flatMap((hit, position) => {
      const item = card({ ...hit, caption: captions[position] });
      const month = monthOf(hit.columns);
      if (!hasDates || month === undefined || month === last) return [item];
      last = month;
      return [monthItem(month), item];
    });
    const first = items.find(({ className }) => className !== "month")?.querySelector("a.image");
    if (offset) results.append(...items);
    else results.replaceChildren(...items);
    if (offset) first?.focus();
    const shown = offset + hits.length;
    more.hidden = !hits.length || shown >= total;
    more.onclick = () => search(shown);
  }

  function monthItem(month) {
    const item = document.createElement("li");
    item.className = "month";
    add(item, "h2").textContent = month;
    return item;
  }

  const ISO = /^(\d{4}-\d\d-\d\d)(T(\d\d:\d\d)|$)/;

  // In the words of the browser's language. A moment is that of the camera's clock, wherever the reader is.
  function inWords(value, parts) {
    return new Date(`${value.slice(0, 10)}T00:00:00Z`).toLocaleDateString(undefined, { ...parts, timeZone: "UTC" });
  }

  // Nothing for an index without dates, whose order is another one.
  function monthOf({ taken }) {
    if (taken === undefined) return undefined;
    return ISO.test(taken ?? "") ? inWords(taken, { month: "long", year: "numeric" }) : "Without a date";
  }

  function whenAndWhere(columns, hasTime = false) {
    const taken = columns.taken ?? "";
    const day = ISO.test(taken) ? inWords(taken, { day: "numeric", month: "short", year: "numeric" }) : columns.year;
    const time = hasTime && ISO.exec(taken)?.[3];
    const when = time ? `${day}, ${time}` : day;
    const where = WHERE.map((column) => columns[column]).filter(Boolean).join(", ");
    return [when, where].filter((text) => text !== undefined && text !== null && text !== "").join(" \u00b7 ");
  }

  function showQuery({ text, row, upload, hybrid: isHybrid, ...parts }) {
    if (viewer.open) viewer.close();
    if (hybrid && text !== undefined) hybrid.checked = Boolean(isHybrid);
    if (hybrid) hybrid.disabled = isCombined(parts);
    showParts(parts, text !== undefined || row !== undefined || Boolean(upload));
    if (queryThumbnail.src.startsWith("blob:")) URL.revokeObjectURL(queryThumbnail.src);
    if (document.activeElement !== words || text !== undefined) words.value = text ?? "";
    queryImage.hidden = text !== undefined || (row === undefined && !upload);
    document.title = text ? `${text} | ${heading}` : heading;
    examples.hidden = text !== undefined || row !== undefined || Boolean(upload);
    if (upload) queryThumbnail.src = URL.createObjectURL(upload);
    else if (row !== undefined) queryThumbnail.src = `image/${encodeURIComponent(row)}`;
    queryName.textContent = upload ? `Images like ${upload.name || "the pasted image"}` : `Images like number ${row}`;
  }

  // The other parts of a query as buttons that remove them, before the field that adds one.
  function showParts(parts, hasQuery) {
    refine.hidden = !hasQuery;
    refine.querySelectorAll("button").forEach((button) => button.remove());
    refine.querySelectorAll("form").forEach((field) => {
      const { part } = field.dataset;
      field.elements[0].value = "";
      (parts[part] ?? []).forEach((words, position) => {
        const button = document.createElement("button");
        Object.assign(button, { type: "button", className: `part ${part}`, textContent: `${part} ${words} \u00d7`, title: "Remove this part", dir: "auto" });
        button.addEventListener("click", () => changeParts(part, parts[part].filter((_, other) => other !== position)));
        field.before(button);
      });
    });
  }

  function changeParts(part, words) {
    const address = queryOf();
    address.delete(part);
    words.forEach((each) => address.append(part, each));
    go(address, history.state);
  }

  function showAnswer({ results: hits, encode_ms, find_ms, rerank_ms, notes, bars, weak, captions }, query) {
    const ms = (value) => (value < 10 ? value.toFixed(1) : value.toFixed(0));
    const parts = [`encoding ${ms(encode_ms)}`, `finding ${ms(find_ms)}`, ...(rerank_ms ? [`re-ranking ${ms(rerank_ms)}`] : [])];
    const count = hits.length === 1 ? "1 image" : `${hits.length} images`;
    const empty = conditions().length ? [] : ["This index has no images left."];
    const summary = hits.length ? [`${count} in ${ms(encode_ms + find_ms + rerank_ms)} ms (${parts.join(", ")})`] : empty;
    const warning = weak ? notes.shift() : "";
    say([...summary, ...notes].join("; "), false, warning);
    results.classList.toggle("weak", weak);
    results.classList.toggle("by-text", query.text !== undefined);
    results.replaceChildren(...hits.map((hit, position) => card({ ...hit, caption: captions[position] }, bars[position])));
    more.hidden = hits.length < k || k >= limits.maxK;
    more.onclick = () => {
      k = Math.min(2 * k, limits.maxK);
      search();
    };
    const itself = hits.find(({ row }) => String(row) === query.row);
    if (itself) queryName.textContent = `Images like ${itself.name}`;
    // The clicked image is gone: the keyboard continues from the first image, not from the top of the page.
    if (isFocusPending) results.querySelector("a.image")?.focus({ preventScroll: true });
    isFocusPending = false;
  }

  // The ends of a name tell files apart: IMG_2041...(copy 2).jpg.
  function shortened(name) {
    const letters = [...name];
    return letters.length <= 22 ? name : `${letters.slice(0, 9).join("")}\u2026${letters.slice(-12).join("")}`;
  }

  // An image of a list or of the sample has no score.
  function card(hit, share) {
    const { row, name, caption, score, reranked, bm25, copies = [], columns = {} } = hit;
    const item = document.createElement("li");
    item.hit = hit;
    const link = add(item, "a", "image");
    link.href = `image/${row}?size=original`;
    link.dataset.row = row;
    link.title = name;
    const image = add(link, "img");
    image.alt = caption || name;
    image.loading = "lazy";
    image.addEventListener("error", () => link.replaceChildren("this image is gone"), { once: true });
    image.src = `image/${row}`;
    if (share !== undefined) add(add(item, "div", "score"), "span").style.setProperty("--share", share.toFixed(3));
    const when = whenAndWhere(columns);
    if (when) Object.assign(add(item, "p", "when"), { textContent: when, title: whenAndWhere(columns, true), dir: "auto" });
    Object.assign(add(item, "p", "name"), { textContent: shortened(name), title: name, dir: "auto" });
    if (caption) Object.assign(add(item, "p", "caption"), { textContent: caption, title: caption, dir: "auto" });
    if (copies.length) Object.assign(add(item, "p", "copies"), { textContent: `${copies.length + 1} copies`, title: copies.join("\n"), dir: "auto" });
    const line = add(item, "p", "numbers");
    const numbers = typeof score !== "number" ? [] : [...(reranked === null ? [] : [`${reranked.toFixed(2)} re-ranked`]), score.toFixed(3)];
    if (bm25) numbers.push(`words ${bm25.toFixed(2)}`);
    if (numbers.length) add(line, "span").textContent = numbers.join(", ");
    Object.assign(add(line, "a", "similar"), { href: similarTo(row), textContent: "similar", title: `Images like ${name}` });
    const values = columnsLine(columns);
    if (values) Object.assign(add(item, "p", "columns"), { textContent: values, title: values, dir: "auto" });
    return item;
  }

  const similarTo = (row) => `?${new URLSearchParams([["row", row], ...conditions().map((condition) => ["where", condition])])}`;

  // The columns of an image that are not shown as its date and place.
  function columnsLine(columns) {
    const shown = whenAndWhere(columns) ? [...(ISO.test(columns.taken ?? "") ? WHEN : ["year"]), ...WHERE] : [];
    const values = Object.entries(columns).filter(([column, value]) => value !== null && !shown.includes(column));
    return values.map(([column, value]) => `${column} ${shownValue(value)}`).join(", ");
  }

  // The image in the viewer; `move` goes to the next or the previous one.
  const part = (name) => viewer.querySelector(`.${name}`);
  let opened;

  function open(item) {
    opened = item;
    const { row, name, caption, copies = [], columns = {} } = item.hit;
    const image = viewer.querySelector("img");
    image.alt = caption || name;
    image.src = `image/${row}?size=preview`;
    part("when").textContent = whenAndWhere(columns, true);
    part("name").textContent = name;
    part("caption").textContent = caption ?? "";
    part("columns").textContent = columnsLine(columns);
    part("copies").textContent = copies.length ? `${copies.length + 1} copies: ${copies.join(", ")}` : "";
    part("similar").href = similarTo(row);
    part("similar").dataset.row = row;
    part("original").href = `image/${row}?size=original`;
    part("previous").disabled = !neighbor(-1);
    part("next").disabled = !neighbor(1);
    if (!viewer.open) viewer.showModal();
  }

  function neighbor(step) {
    const items = [...results.querySelectorAll("li:not(.month)")];
    return items[items.indexOf(opened) + step];
  }

  function move(step) {
    if (neighbor(step)) open(neighbor(step));
  }

  function add(parent, tag, name = "") {
    const node = parent.appendChild(document.createElement(tag));
    if (name) node.className = name;
    return node;
  }

  function shownValue(value) {
    if (typeof value === "boolean") return value ? "yes" : "no";
    return typeof value === "string" ? value.replace(/^(\d{4}-\d\d-\d\d)T(\d\d:\d\d)(:00$|.*)/, "$1 $2") : String(value);
  }

  // The server writes and quotes the condition of a choice. A range has a number or a date of the browser's own field, so nothing to quote.
  const isDate = ({ type }) => type.startsWith("date");
  const bound = (column, sign, text) => `${column.quoted} ${sign} ${isDate(column) ? `'${text}'` : text}`;
  const endOfDay = ({ type }, text) => (type === "date and time" ? `${text}T23:59:59.999999` : text);

  // Any part of a text; % and _ stand for themselves.
  const quotedPart = (text) => text.replace(/[\\%_]/g, "\\$&").replaceAll("'", "''");
  const unquotedPart = (text) => text.replaceAll("''", "'").replace(/\\(.)/g, "$1");

  function addFacet(column, place) {
    // More would push the images out of a phone's screen.
    const parent = place < (FIRST_FILTERS.includes(column.name) ? FIRST_FILTERS.length : 2) ? facets : (facets.querySelector("details") ?? add(facets, "details"));
    if (parent !== facets && !parent.children.length) add(parent, "summary").textContent = "More filters";
    const label = add(parent, "label");
    add(label, "span").textContent = column.name;
    const fields = column.facet === "values" ? [add(label, "select")] : Array.from({ length: column.facet === "part" ? 1 : 2 }, () => add(label, "input"));
    if (column.facet === "values") {
      fields[0].append(new Option("any", ""));
      // Years one after the other; other values by their number of images.
      const values = column.type.endsWith("number") ? [...column.values].sort((a, b) => b.value - a.value) : column.values;
      values.forEach(({ value, images, condition }) => fields[0].append(new Option(`${shortened(shownValue(value))} (${images})`, condition)));
    } else if (column.facet === "part") {
      Object.assign(fields[0], { type: "text", title: `a part of ${column.name}` });
      Object.assign(fields[0].dataset, { start: `${column.quoted} like '%`, end: "%'" });
    } else {
      fields.forEach((field, end) => {
        const limit = String([column.low, column.high][end]);
        Object.assign(field, { type: isDate(column) ? "date" : "number", step: "any", placeholder: limit, title: `${["from", "to"][end]} ${limit}` });
        field.setAttribute("aria-label", `${column.name} ${["from", "to"][end]}`);
        field.dataset.start = bound(column, [">=", "<="][end], "").replace(/''$/, "'");
        field.dataset.end = isDate(column) ? "'" : "";
      });
    }
    fields.forEach((field, end) => {
      field.condition = () => {
        if (column.facet === "values" || !field.value) return field.value;
        if (column.facet === "part") return field.dataset.start + quotedPart(field.value) + field.dataset.end;
        return field.dataset.start + (end ? endOfDay(column, field.value) : field.value) + field.dataset.end;
      };
      field.addEventListener("change", () => {
        const others = conditions().filter((condition) => condition !== field.shown);
        go(queryOf(), history.state, [...others, field.condition()].filter(Boolean));
      });
    });
  }

  function queryOf() {
    const address = new URLSearchParams(location.search);
    address.delete("where");
    return address;
  }

  // The fields show the conditions of the address; others, such as those of a link, get a button that removes them.
  function showConditions() {
    const where = conditions();
    const left = new Set(where);
    facets.querySelectorAll("select, input").forEach((field) => {
      const isShown = (condition) =>
        field.tagName === "SELECT" ? [...field.options].some(({ value }) => value === condition) : condition.startsWith(field.dataset.start);
      field.shown = where.find((condition) => condition && isShown(condition)) ?? "";
      const value = field.shown.slice(field.dataset.start?.length ?? 0);
      if (field.type === "text") field.value = unquotedPart(value.slice(0, -2));
      else field.value = field.tagName === "SELECT" ? value : value.replace(/(T.*)?'?$/, "");
      left.delete(field.shown);
    });
    facets.querySelectorAll("button").forEach((button) => button.remove());
    left.forEach((condition) => {
      const button = add(facets, "button", "condition");
      Object.assign(button, { type: "button", textContent: `${condition} \u00d7`, title: "Remove this condition" });
      button.addEventListener("click", () => go(queryOf(), history.state, conditions().filter((other) => other !== condition)));
    });
    facets.hidden = !facets.children.length;
  }

  async function loadFacets() {
    try {
      const response = await fetch("columns");
      const place = ({ name }) => (FIRST_FILTERS.includes(name) ? FIRST_FILTERS.indexOf(name) : FIRST_FILTERS.length);
      const offered = response.ok ? (await response.json()).filter(({ facet }) => facet) : [];
      offered.sort((a, b) => place(a) - place(b) || a.distinct - b.distinct).forEach(addFacet);
    } catch {
      return; // the search itself says that the server does not answer
    }
    showConditions();
  }

  function searchByImage(image) {
    if (!image) return;
    if (image.type && !image.type.startsWith("image/")) return say(`${image.name} is not an image.`, true);
    if (image.size > limits.maxUploadBytes) {
      const [size, limit] = [image.size, limits.maxUploadBytes].map((bytes) => (bytes / 2 ** 20).toFixed(1));
      return say(`${image.name} has ${size} MiB; at most ${limit} MiB can be sent.`, true);
    }
    go({}, { upload: uploads.push(image) - 1 });
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    // An empty field leads back to the list.
    if (!words.value.trim()) return go({});
    const { also = [], not = [] } = current();
    const parts = [...also.map((each) => ["also", each]), ...not.map((each) => ["not", each])];
    go([["q", words.value], ...(hybrid?.checked ? [["hybrid", "true"]] : []), ...parts]);
  });
  refine.addEventListener("submit", (event) => {
    event.preventDefault();
    const { part } = event.target.dataset;
    const added = event.target.elements[0].value.trim();
    if (added) changeParts(part, [...current()[part], added]);
  });
  hybrid?.addEventListener("change", () => form.requestSubmit());
  file.addEventListener("change", () => {
    searchByImage(file.files[0]);
    file.value = "";
  });
  queryThumbnail.addEventListener("error", () => (queryImage.hidden = true));
  function similar(row) {
    scrollTo(0, 0);
    isFocusPending = true;
    go({ row });
  }

  document.addEventListener("click", (event) => {
    const link = event.target.closest("a.image, a.similar");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    if (link.classList.contains("image")) open(link.closest("li"));
    else similar(new URLSearchParams(link.search).get("row"));
  });
  part("previous").addEventListener("click", () => move(-1));
  part("next").addEventListener("click", () => move(1));
  part("close").addEventListener("click", () => viewer.close());
  // A click beside the image and its text.
  viewer.addEventListener("click", (event) => event.target === viewer && viewer.close());
  viewer.addEventListener("close", () => opened?.querySelector("a.image")?.focus());
  document.addEventListener("paste", (event) => searchByImage(event.clipboardData.files[0]));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const focused = document.activeElement;
    if (viewer.open) {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step) move(step);
      else if (event.key === "s") similar(opened.hit.row);
      else return; // Escape closes a dialog by itself
      return event.preventDefault();
    }
    const links = [...results.querySelectorAll("a.image")];
    const position = links.indexOf(focused);
    const isTyping = focused.matches("input, select");
    const leads = { ArrowDown: focused === words || focused === document.body, ArrowRight: focused === document.body };
    if (event.key === "/" && !isTyping) {
      words.focus();
      words.select();
    } else if (leads[event.key] && links.length) links[0].focus();
    else if (event.key === "Escape" && focused.matches("#refine input, #words")) focused.blur();
    else if (position >= 0 && event.key === "s") similar(links[position].dataset.row);
    else if (position >= 0 && target(event.key, links, position)) target(event.key, links, position).focus();
    else return;
    event.preventDefault();
  });

  // The image that an arrow leads to: beside, or the nearest in the next row, which may be shorter under the name of a month.
  function target(key, links, position) {
    if (key === "Home") return links[0];
    if (key === "End") return links.at(-1);
    if (key === "ArrowLeft") return links[Math.max(position - 1, 0)];
    if (key === "ArrowRight") return links[Math.min(position + 1, links.length - 1)];
    if (key !== "ArrowUp" && key !== "ArrowDown") return undefined;
    const { offsetTop: top, offsetLeft: left } = links[position];
    const others = key === "ArrowDown" ? links.slice(position + 1) : links.slice(0, position).reverse();
    const row = others.find(({ offsetTop }) => offsetTop !== top)?.offsetTop;
    const inRow = others.filter(({ offsetTop }) => offsetTop === row);
    const distance = ({ offsetLeft }) => Math.abs(offsetLeft - left);
    return inRow.sort((a, b) => distance(a) - distance(b))[0] ?? links[position];
  }

  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    drop.hidden = false;
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) drop.hidden = true;
  });
  document.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    drop.hidden = true;
    searchByImage(event.dataTransfer.files[0]);
  });
  addEventListener("popstate", () => {
    k = limits.k;
    search();
  });
  search();
  loadFacets();
  if (!Object.keys(current()).length) words.focus();
})();

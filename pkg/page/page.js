"use strict";
// The page is whole without this: it only makes tables and texts searchable, sorts, and copies.

// later runs f when nothing has called it for a moment.
function later(f) {
	let timer = 0;
	return () => {
		clearTimeout(timer);
		timer = setTimeout(f, 120);
	};
}

for (const table of document.querySelectorAll("table.runs")) {
	const form = table.previousElementSibling, body = table.tBodies[0];
	const rows = Array.from(body.rows);
	const texts = rows.map(row => Array.from(row.cells, cell => cell.textContent).join("\n").toLowerCase());
	const find = form.querySelector(".find"), boxes = Array.from(form.querySelectorAll("[type=checkbox]"));
	const filter = () => {
		const words = find.value.toLowerCase().split(/\s+/);
		const shown = new Set(boxes.filter(box => box.checked).map(box => box.value));
		let n = 0;
		rows.forEach((row, i) => {
			row.hidden = !shown.has(row.dataset.status) || !words.every(word => texts[i].includes(word));
			n += row.hidden ? 0 : 1;
		});
		form.querySelector("output").textContent = n + " of " + rows.length + " runs";
	};
	find.addEventListener("input", later(filter));
	boxes.forEach(box => box.addEventListener("change", filter));
	form.addEventListener("submit", event => event.preventDefault());
	form.hidden = false;
	filter();

	// A column's first click sorts numbers from the largest, texts from the first; the next one the other way.
	const heads = Array.from(table.tHead.rows[0].cells);
	heads.forEach((head, column) => {
		const button = document.createElement("button");
		button.type = "button";
		button.textContent = head.textContent;
		head.replaceChildren(button);
		const number = head.classList.contains("number");
		const keys = new Map();
		button.addEventListener("click", () => {
			const down = head.hasAttribute("aria-sort") ? head.getAttribute("aria-sort") === "ascending" : number;
			heads.forEach(other => other.removeAttribute("aria-sort"));
			head.setAttribute("aria-sort", down ? "descending" : "ascending");
			if (keys.size === 0) {
				rows.forEach(row => {
					const cell = row.cells[column];
					keys.set(row, number ? Number(cell.dataset.sort) : cell.textContent);
				});
			}
			const sorted = rows.slice().sort((a, b) => {
				const x = keys.get(a), y = keys.get(b);
				return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1);
			});
			body.append(...sorted);
		});
	});
}

for (const box of document.querySelectorAll("input.lines")) {
	const text = box.closest(".text"), pre = text.querySelector("pre"), out = text.querySelector("output");
	const all = pre.textContent;
	const show = () => {
		const word = box.value.toLowerCase();
		if (word === "") {
			pre.textContent = all;
			out.textContent = "";
			return;
		}
		const lines = all.split("\n").filter(line => line.toLowerCase().includes(word));
		const parts = [];
		for (const line of lines) {
			const at = line.toLowerCase().indexOf(word);
			const mark = document.createElement("mark");
			mark.textContent = line.slice(at, at + word.length);
			parts.push(line.slice(0, at), mark, line.slice(at + word.length) + "\n");
		}
		pre.replaceChildren(...parts);
		out.textContent = lines.length + (lines.length === 1 ? " line" : " lines");
	};
	box.addEventListener("input", later(show));
	box.closest(".tools").hidden = all.split("\n").length <= 10; // these are seen at once
}

for (const button of document.querySelectorAll("button.copy")) {
	button.hidden = false;
	button.addEventListener("click", async () => {
		const pre = button.parentElement.querySelector("pre");
		try {
			await navigator.clipboard.writeText(pre.textContent);
			button.textContent = "Copied";
		} catch {
			getSelection().selectAllChildren(pre); // for the user to copy
		}
	});
}

// Browsers open what a link leads to, but not all of them.
function reveal() {
	const target = document.getElementById(location.hash.slice(1));
	for (let x = target; x; x = x.parentElement) {
		if (x instanceof HTMLDetailsElement) {
			x.open = true;
		}
	}
	if (target) {
		target.scrollIntoView();
	}
}
addEventListener("hashchange", reveal);
reveal();

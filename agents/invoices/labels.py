"""The words that invoices use for their fields, in nine languages, and how they are found in a text.

Rules: no vendor's name, no template. A phrase is compared without case, accents, spaces and punctuation, because OCR
loses all of these; the longest phrase wins, so that "total excl. VAT" is never a "total".
"""

from __future__ import annotations

import functools
import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

Label = Literal[
    "gross", "due", "total", "net", "tax", "subtotal", "paid", "previous", "balance", "discount", "extra",
    "number", "weak_number", "receipt_number", "date", "other_date", "due_date", "order", "other_number",
    "column", "title_invoice", "title_credit", "title_receipt", "title_other", "recipient",
]  # fmt: skip

# language -> label -> phrases, separated by "|".
_PHRASES: dict[str, dict[Label, str]] = {
    "en": {
        "gross": "grand total|invoice total|total incl vat|total incl tax|total including vat|total including tax|"
        "total inc vat|total with tax|total invoice amount|invoice amount|total for this invoice|total invoice|"
        "total inclusive of tax|total inclusive|total incl gst|total inc gst|gross total|gross amount|total gross|"
        "total invoice value|invoice value|total vat included|total amount incl vat|total amount including vat",
        "due": "amount due|total due|total amount due|balance due|amount payable|total payable|total amount payable|"
        "net payable|please pay|pay this amount|to pay|total to pay|amount to pay|payable amount|amount owing|"
        "total owed|net amount payable|net amount due|new balance|total amount owing|outstanding amount|"
        "amount outstanding|current amount due|due now",
        "total": "total|total amount|totals|amount total|order total|sum total",
        "net": "net|net total|net amount|total net|total excl vat|total excl tax|total excluding vat|"
        "total excluding tax|total ex vat|total ex tax|amount excl vat|amount excluding vat|total before tax|"
        "amount before tax|taxable amount|taxable value|taxable|total taxable|subtotal excl vat|subtotal ex vat|"
        "sub total excl vat|subtotal excluding vat|subtotal before tax|total without tax|total exclusive|excl vat|"
        "amount without tax|net value|goods total|total without vat|subtotal net",
        "tax": "vat|tax|gst|hst|sales tax|vat amount|tax amount|total vat|total tax|cgst|sgst|igst|utgst|"
        "consumption tax|plus vat|value added tax|gst amount|tax total|vat total|incl vat|including vat|"
        "includes vat|of which vat|service tax|cess|local tax|state tax|city tax",
        "subtotal": "subtotal|sub total|items total|item subtotal|total charges|charges subtotal",
        "paid": "paid|amount paid|payment received|payments received|total paid|deposit paid|deposit|prepaid|"
        "less payment|less deposit|payments|payment|advance|advance paid|already paid|amount received|down payment|"
        "less paid|paid amount|less advance|prepayment|paid by|paid on|thank you for your payment|payment made",
        "previous": "previous balance|balance forward|balance brought forward|brought forward|past due|"
        "previous amount|opening balance|prior balance|last balance|arrears|carried forward|previous invoice|"
        "previous statement|overdue balance|previous charges",
        "balance": "balance|remaining balance|closing balance|outstanding balance|balance if any",
        "discount": "discount|rebate|less discount|credit|credits|promotion|voucher|coupon",
        "extra": "shipping|shipping and handling|freight|delivery|postage|handling|rounding|round off|rounded|"
        "delivery charge|shipping cost|carriage|shipping charges|service charge|tip|gratuity|surcharge|delivery fee",
        "number": "invoice number|invoice no|invoice num|invoice nr|invoice id|inv no|inv number|bill number|bill no|"
        "tax invoice no|tax invoice number|credit note number|credit note no|credit memo number|invoice ref|"
        "invoice reference|our invoice no|invoice code|inv nr",
        "weak_number": "invoice|tax invoice|credit note|document number|document no|bill|commercial invoice",
        "receipt_number": "receipt number|receipt no|receipt|booking id|booking number|booking no|transaction id|"
        "confirmation number|booking reference|payment reference",
        "date": "invoice date|date of invoice|date of issue|issue date|issued on|issued|bill date|billing date|date|"
        "dated|tax point|invoice dated|tax date|date issued|document date|receipt date",
        "due_date": "due date|date due|payment due|due on|due by|due|pay by|payable by|pay before|expires|valid until|"
        "expiry date|payment date|direct debit on|next billing date",
        "other_date": "order date|delivery date|ship date|shipping date|date of supply|supply date|date shipped|"
        "service date|period|billing period|date of birth|check in|check out|from|until|date of order|statement date|"
        "dispatch date|purchase date|po date|start date|end date|print date|printed on|date of delivery|"
        "performance date|date of service",
        "order": "order number|order no|order id|purchase order|purchase order no|purchase order number|po number|"
        "po no|po ref|your order|your order no|your reference|customer po|po|your ref|order reference|order ref|order",
        "other_number": "customer number|customer no|customer id|account number|account no|vat number|vat no|"
        "vat reg no|vat id|tax id|tax no|tax number|company number|phone|tel|telephone|fax|iban|bic|swift|sort code|"
        "contract no|contract number|delivery note no|reference|our reference|our ref|customer ref|abn|gstin|ein|"
        "pan|cin|vat registration number|vat registration no|company reg no|routing number|client id|service tax no|"
        "vat tin|tin|project|project no|quote number|gst no|gst number|gst reg no|bank account|page|vat reg|"
        "customer|account",
        "column": "description|quantity|qty|unit price|price|item|items|unit|rate|hours|units|product|details|"
        "particulars|unit cost|line total|hsn|sac|article|services|product title",
        "title_invoice": "invoice|tax invoice|bill|sales invoice|commercial invoice|retail invoice",
        "title_credit": "credit note|credit memo|credit invoice|refund note",
        "title_receipt": "receipt|payment receipt|cash receipt|sales receipt",
        "title_other": "quotation|quote|estimate|pro forma|proforma|pro forma invoice|proforma invoice|"
        "order confirmation|statement of account|account statement|delivery note|packing slip|packing list|reminder|"
        "payment reminder|purchase order|sales order|remittance advice|dunning|final notice|draft|draft invoice|"
        "not an invoice",
        "recipient": "bill to|billed to|ship to|invoice to|sold to|customer|bill to address|billing address|"
        "shipping address|deliver to|invoiced to|guest name|attn",
    },
    "de": {
        "gross": "gesamtbetrag|rechnungsbetrag|gesamtsumme|bruttobetrag|brutto|summe brutto|gesamt brutto|"
        "gesamtbetrag brutto|rechnungssumme|endbetrag|endsumme|gesamtbetrag inkl mwst|gesamt inkl mwst|total inkl mwst|"
        "summe inkl mwst|gesamtpreis brutto|rechnungsendbetrag|betrag inkl mwst|total brutto|bruttosumme|"
        "gesamtbetrag inkl ust|summe inkl ust|gesamt inkl ust|rechnungstotal|total inkl|betrag brutto",
        "due": "zu zahlen|zu zahlender betrag|zahlbetrag|zahlungsbetrag|falliger betrag|offener betrag|restbetrag|"
        "noch zu zahlen|zahlbarer betrag|bitte zahlen sie|zahllast",
        "total": "summe|gesamt|total|betrag total|insgesamt|gesamtpreis",
        "net": "netto|nettobetrag|summe netto|gesamt netto|nettosumme|gesamtbetrag netto|total netto|total exkl mwst|"
        "summe ohne mwst|warenwert|zwischensumme netto|netto betrag|nettowert|total ohne mwst|betrag netto|"
        "summe netto ohne mwst|gesamtnetto|nettobetrag ohne mwst|gesamt ohne mwst|total exkl|exkl mwst",
        "tax": "mwst|ust|umsatzsteuer|mehrwertsteuer|zzgl mwst|zzgl ust|mwst betrag|steuerbetrag|zzgl umsatzsteuer|"
        "enthaltene mwst|darin enthaltene mwst|inkl mwst|incl mwst|davon mwst|steuer|zuzuglich mwst|summe mwst|"
        "inkl ust|enthaltene umsatzsteuer|zzgl mehrwertsteuer|mwst satz|mehrwertsteuerbetrag",
        "subtotal": "zwischensumme|warensumme|positionssumme",
        "paid": "bezahlt|anzahlung|bereits gezahlt|bereits bezahlt|abzuglich anzahlung|gezahlt|zahlung|"
        "erhaltene zahlung|geleistete zahlung|vorauszahlung|bereits geleistet|zahlungseingang|teilzahlung",
        "previous": "saldovortrag|vorheriger saldo|ubertrag|offene posten|alter saldo|offener saldo|ruckstand|"
        "forderung aus vormonat|vortrag|mahngebuhr",
        "balance": "saldo|restsaldo",
        "discount": "rabatt|skonto|nachlass|gutschein|abzug",
        "extra": "versand|versandkosten|porto|rundung|fracht|lieferkosten|versand und verpackung|rundungsdifferenz|"
        "verpackung|porto und verpackung|frachtkosten",
        "number": "rechnungsnummer|rechnungsnr|rechnungs nr|rechnung nr|rechnung nummer|rechnungs nummer|re nr|"
        "belegnummer|belegnr|beleg nr|gutschriftsnummer|gutschriftnr|gutschrift nr|rg nr|rechn nr|faktura nr",
        "weak_number": "rechnung|gutschrift|dokumentnummer|dokument nr",
        "receipt_number": "quittungsnummer|buchungsnummer|bon nr|quittung nr",
        "date": "rechnungsdatum|datum|belegdatum|ausstellungsdatum|datum der rechnung|rechnung vom|ausgestellt am|"
        "rechnungstag",
        "due_date": "falligkeitsdatum|fallig am|zahlbar bis|zahlungsziel|fallig|bezahlen bis|zahlung bis|falligkeit",
        "other_date": "lieferdatum|leistungsdatum|bestelldatum|leistungszeitraum|auftragsdatum|versanddatum|"
        "abrechnungszeitraum|zeitraum|liefertermin|lieferzeitpunkt|kaufdatum|druckdatum|bestellung vom|leistungstag",
        "order": "bestellnummer|bestell nr|bestellnr|ihre bestellung|auftragsnummer|auftrags nr|auftragsnr|"
        "ihre bestellnummer|bestellung nr|ihr auftrag|bestellung|ihr zeichen|ihre referenz|auftrag",
        "other_number": "kundennummer|kundennr|kunden nr|ust id|ust idnr|ustid|steuernummer|steuer nr|kontonummer|"
        "kto nr|blz|telefon|vertragsnummer|vertrags nr|lieferscheinnummer|lieferschein nr|mwst nr|uid|hrb|referenz|"
        "unser zeichen|ust id nr|konto|seite|kunde|bankverbindung",
        "column": "beschreibung|bezeichnung|menge|einzelpreis|anzahl|artikel|position|einheit|leistung|stuckpreis|"
        "gesamtpreis eur|preis|pos|zeilenbetrag|stuck|stunden|vk preis",
        "title_invoice": "rechnung|faktura",
        "title_credit": "gutschrift|rechnungskorrektur|stornorechnung|storno",
        "title_receipt": "quittung|zahlungsbeleg",
        "title_other": "angebot|auftragsbestatigung|lieferschein|mahnung|zahlungserinnerung|kostenvoranschlag|"
        "kontoauszug|proforma rechnung|proformarechnung|bestellung|entwurf",
        "recipient": "rechnung an|lieferadresse|rechnungsadresse|rechnungsempfanger|lieferanschrift|rechnungsanschrift",
    },
    "fr": {
        "gross": "total ttc|montant ttc|total toutes taxes comprises|montant total ttc|total general ttc|"
        "total facture|montant total|total general|montant de la facture|total de la facture|prix total ttc|"
        "montant total de la facture|total facture ttc",
        "due": "net a payer|somme a payer|montant a payer|total a payer|a payer|reste a payer|solde a payer|"
        "montant du|net a payer ttc|solde du|total du|montant du prelevement|montant preleve|total a payer ttc",
        "total": "total|somme",
        "net": "total ht|montant ht|total hors taxes|sous total ht|montant total ht|total hors taxe|total net ht|"
        "total hors tva|montant hors taxe|montant hors taxes|base ht|net ht|total general ht|total h t|hors tva",
        "tax": "tva|montant tva|total tva|dont tva|taxe|taxes|montant de la tva|total taxes|montant total tva|"
        "total de la tva",
        "subtotal": "sous total",
        "paid": "acompte|deja paye|deja regle|paye|regle|paiement|acompte verse|montant paye|montant regle|avance|"
        "paiement recu|acomptes|acompte recu",
        "previous": "solde precedent|ancien solde|report|solde anterieur|impaye|arrieres",
        "balance": "solde",
        "discount": "remise|rabais|escompte|ristourne|bon de reduction|reduction",
        "extra": "frais de port|livraison|frais de livraison|arrondi|port|frais d expedition|port et emballage|transport",
        "number": "numero de facture|facture n|n de facture|no de facture|facture no|n facture|facture numero|num facture|"
        "facture num|nr de facture|numero facture|avoir n|numero d avoir|reference facture|n d avoir|ref facture",
        "weak_number": "facture|avoir|piece n|document n",
        "receipt_number": "recu n|numero de recu|numero de reservation",
        "date": "date de facture|date de facturation|date facture|date d emission|date de la facture|facture du|"
        "emise le|date emission|facture emise le|date d etablissement|etablie le",
        "due_date": "date d echeance|echeance|date limite de paiement|a payer avant|payable le|date limite|"
        "prelevement a partir du|date de paiement|date de reglement|a regler avant|date echeance",
        "other_date": "date de commande|date de livraison|periode|du 1er|commande du|date d expedition|"
        "periode de facturation|date de prestation|date commande|date livraison",
        "order": "numero de commande|n de commande|commande n|no de commande|bon de commande|votre commande|"
        "votre reference|commande no|n commande|ref commande|commande",
        "other_number": "numero client|n client|id client|code client|n de client|siret|siren|n tva|numero de tva|"
        "tva intracommunautaire|n de tva|rcs|numero de ligne|n de compte|ref client|n tva intracommunautaire|"
        "numero de contrat|page|client|n de tva intracommunautaire|no client|no tva",
        "column": "designation|quantite|prix unitaire|prix|libelle|unite|montant|qte|pu ht|taux|prix unitaire mois|article",
        "title_invoice": "facture",
        "title_credit": "avoir|note de credit|facture d avoir",
        "title_receipt": "recu|quittance",
        "title_other": "devis|bon de livraison|facture proforma|facture pro forma|rappel|releve de compte|relance|"
        "confirmation de commande|brouillon|bon de commande",
        "recipient": "facture a|adresse de livraison|adresse de facturation|facturer a|livrer a|nom de l abonne|"
        "destinataire",
    },
    "nl": {
        "gross": "totaal incl btw|totaal inclusief btw|totaalbedrag|factuurbedrag|eindtotaal|totaal factuur|"
        "totaal incl|bedrag incl btw|totaalbedrag incl btw|totaal bedrag|totaal inclusief",
        "due": "te betalen|totaal te betalen|te voldoen|openstaand bedrag|nog te betalen|te betalen bedrag|"
        "bedrag te betalen|totaal te voldoen|te ontvangen",
        "total": "totaal|som",
        "net": "totaal excl btw|exclusief btw|subtotaal excl btw|totaal exclusief btw|excl btw|netto|nettobedrag|"
        "bedrag excl btw|subtotaal exclusief btw|totaal excl|totaal exclusief|totaal netto|grondslag|bedrag exclusief btw",
        "tax": "btw|btw bedrag|totaal btw|omzetbelasting|waarvan btw|inclusief btw|incl btw|btw hoog|btw laag",
        "subtotal": "subtotaal",
        "paid": "betaald|aanbetaling|reeds betaald|voldaan|betaling|vooruitbetaald|reeds voldaan|ontvangen betaling",
        "previous": "vorig saldo|openstaand saldo|vorige factuur|openstaand|beginsaldo|vorig openstaand saldo",
        "balance": "saldo",
        "discount": "korting",
        "extra": "verzendkosten|bezorgkosten|afronding|vracht|verzending|administratiekosten",
        "number": "factuurnummer|factuur nr|factuurnr|factuur nummer|nummer factuur|creditnotanummer|creditnota nr",
        "weak_number": "factuur|creditnota|documentnummer",
        "receipt_number": "bonnummer|reserveringsnummer|boekingsnummer",
        "date": "factuurdatum|datum|datum factuur|documentdatum|datum van uitgifte",
        "due_date": "vervaldatum|vervaldag|betalen voor|uiterste betaaldatum|te betalen voor|uiterlijk|te voldoen voor",
        "other_date": "orderdatum|leverdatum|besteldatum|periode|bestelling van|leveringsdatum|verzenddatum",
        "order": "ordernummer|order nr|bestelnummer|uw referentie|uw bestelling|bestelling nr|inkoopnummer|uw order|"
        "ordernr|inkooporder|uw ordernummer|bestelbon|bestelling",
        "other_number": "klantnummer|klantnr|btw nummer|btw nr|kvk|kvk nummer|debiteurnummer|telefoon|serienummer|"
        "btw id|debiteurennummer|pagina|klant|rekeningnummer|klant nr",
        "column": "omschrijving|aantal|prijs|prijs per stuk|stuksprijs|eenheid|bedrag|artikel|tarief|prijs incl btw|"
        "prijs excl btw|uren|eenheidsprijs",
        "title_invoice": "factuur",
        "title_credit": "creditnota|creditfactuur",
        "title_receipt": "kwitantie|betaalbewijs",
        "title_other": "offerte|pakbon|aanmaning|herinnering|orderbevestiging|proforma factuur|pro forma factuur|"
        "betalingsherinnering",
        "recipient": "factuuradres|afleveradres|factuur aan|bezorgadres",
    },
    "es": {
        "gross": "importe total|total factura|total con iva|total iva incluido|total general|importe total factura|"
        "importe factura|total impuestos incluidos|monto total|total factura con iva",
        "due": "total a pagar|importe a pagar|a pagar|saldo a pagar|importe pendiente|total a abonar|liquido a pagar|"
        "neto a pagar|pendiente de pago|monto a pagar",
        "total": "total|suma|totales",
        "net": "base imponible|subtotal sin iva|importe neto|total sin iva|base|total neto|neto|importe sin iva|"
        "total base imponible|suma base imponible",
        "tax": "iva|cuota iva|importe iva|total iva|impuestos|impuesto|cuota|igic|cuota de iva",
        "subtotal": "subtotal|suma parcial",
        "paid": "pagado|anticipo|importe pagado|pago recibido|entregado a cuenta|a cuenta|pago anticipado",
        "previous": "saldo anterior|saldo pendiente anterior|deuda anterior",
        "balance": "saldo",
        "discount": "descuento|dto",
        "extra": "gastos de envio|envio|portes|redondeo|transporte",
        "number": "numero de factura|factura numero|n de factura|no de factura|factura n|factura no|num factura|"
        "n factura|factura num|numero factura|nro factura|factura nro|num de factura|factura rectificativa n",
        "weak_number": "factura|abono",
        "receipt_number": "numero de recibo|recibo n|numero de reserva",
        "date": "fecha de factura|fecha factura|fecha de emision|fecha|fecha de expedicion|fecha emision|"
        "fecha de la factura",
        "due_date": "fecha de vencimiento|vencimiento|fecha limite|fecha vencimiento|fecha de pago",
        "other_date": "fecha de pedido|fecha de entrega|periodo|fecha pedido|periodo de facturacion|fecha de operacion|"
        "fecha entrega",
        "order": "numero de pedido|pedido n|n de pedido|n pedido|su pedido|pedido numero|su referencia|pedido no|"
        "orden de compra|num pedido|pedido",
        "other_number": "numero de cliente|n de cliente|n cliente|nif|cif|cliente n|cuenta|telefono|cod cliente|"
        "codigo cliente|referencia|pagina|cliente|numero de cuenta",
        "column": "descripcion|cantidad|precio|precio unitario|concepto|unidades|cant|importe|articulo",
        "title_invoice": "factura",
        "title_credit": "factura rectificativa|nota de credito|abono|nota de abono",
        "title_receipt": "recibo",
        "title_other": "presupuesto|albaran|factura proforma|recordatorio|oferta|nota de entrega|extracto de cuenta",
        "recipient": "facturar a|enviar a|direccion de envio|direccion de facturacion|datos del cliente",
    },
    "it": {
        "gross": "totale fattura|totale documento|importo totale|totale ivato|totale iva inclusa|totale generale|"
        "totale complessivo|totale iva compresa|totale lordo",
        "due": "totale da pagare|netto a pagare|da pagare|importo da pagare|totale a pagare|"
        "importo dovuto|saldo da pagare|totale dovuto",
        "total": "totale|somma",
        "net": "imponibile|totale imponibile|totale netto|netto|totale senza iva|imponibile netto|"
        "base imponibile iva|totale merce",
        "tax": "iva|imposta|totale iva|importo iva|totale imposta",
        "subtotal": "subtotale",
        "paid": "acconto|pagato|gia pagato|pagamento ricevuto|importo pagato",
        "previous": "saldo precedente|riporto|insoluto",
        "balance": "saldo",
        "discount": "sconto|abbuono",
        "extra": "spese di spedizione|trasporto|arrotondamento|bollo|spedizione|spese di trasporto|marca da bollo",
        "number": "numero fattura|fattura n|fattura numero|n fattura|fattura nr|n documento|numero documento|"
        "nr fattura|numero della fattura",
        "weak_number": "fattura|nota di credito",
        "receipt_number": "ricevuta n|numero ricevuta",
        "date": "data fattura|data documento|data emissione|data|data di emissione|data della fattura",
        "due_date": "scadenza|data scadenza|data di scadenza|pagamento entro",
        "other_date": "data ordine|data consegna|periodo|data di consegna|data spedizione",
        "order": "numero ordine|ordine n|vostro ordine|vs ordine|n ordine|rif ordine|ordine numero|ordine d acquisto|ordine",
        "other_number": "partita iva|p iva|codice cliente|codice fiscale|cod cliente|telefono|numero cliente|pagina|cliente",
        "column": "descrizione|quantita|prezzo|prezzo unitario|importo|articolo|unita",
        "title_invoice": "fattura",
        "title_credit": "nota di credito|nota credito",
        "title_receipt": "ricevuta",
        "title_other": "preventivo|fattura proforma|sollecito|bolla di consegna|documento di trasporto|offerta",
        "recipient": "fatturato a|spedire a|destinatario|spett le|indirizzo di spedizione",
    },
    "pt": {
        "gross": "total da fatura|total geral|valor total|total com iva|total fatura|total iva incluido|"
        "montante total|total do documento",
        "due": "total a pagar|valor a pagar|a pagar|montante a pagar|valor devido|saldo a pagar",
        "total": "total|soma",
        "net": "total sem iva|base tributavel|valor liquido|total liquido|incidencia|total iliquido|base de incidencia",
        "tax": "iva|total iva|valor iva|imposto|valor do iva|total de iva",
        "subtotal": "subtotal",
        "paid": "pago|adiantamento|valor pago|sinal|pagamento recebido",
        "previous": "saldo anterior",
        "balance": "saldo",
        "discount": "desconto|descontos",
        "extra": "portes de envio|arredondamento|frete|portes",
        "number": "numero da fatura|fatura n|fatura no|n da fatura|fatura numero|factura n|nota fiscal n|numero fatura",
        "weak_number": "fatura|fatura recibo",
        "receipt_number": "recibo n|numero do recibo",
        "date": "data da fatura|data de emissao|data emissao|data|data do documento",
        "due_date": "data de vencimento|vencimento|data limite de pagamento|pagar ate",
        "other_date": "data da encomenda|data de entrega|periodo de faturacao",
        "order": "numero da encomenda|encomenda n|nota de encomenda|vossa encomenda|pedido de compra|sua referencia|encomenda",
        "other_number": "contribuinte|nif cliente|cnpj|telefone|numero de cliente|n contribuinte|cpf",
        "column": "descricao|quantidade|preco|preco unitario|valor|qtd|artigo",
        "title_invoice": "fatura",
        "title_credit": "nota de credito",
        "title_receipt": "recibo",
        "title_other": "orcamento|fatura proforma|guia de remessa",
        "recipient": "faturar a|enviar para|morada de faturacao|morada de entrega",
    },
    "sv": {
        "gross": "totalt inkl moms|totalbelopp|fakturabelopp|summa inkl moms|total inkl moms",
        "due": "att betala|belopp att betala|summa att betala",
        "total": "summa|totalt|i alt",
        "net": "summa exkl moms|exkl moms|total ekskl moms|totalt exkl moms|belop exkl moms|total excl moms",
        "tax": "moms|moms belopp|mva",
        "paid": "betalt",
        "number": "fakturanummer|faktura nr|fakturanr|faktura nummer",
        "weak_number": "faktura",
        "date": "fakturadatum|fakturadato|utfardad|faktura datum",
        "due_date": "forfallodatum|forfaldsdato|forfallsdato|betalningsdatum",
        "order": "ert ordernummer|ordrenummer",
        "column": "beskrivning|antal|a pris|belopp|beskrivelse|belob",
        "title_invoice": "faktura",
        "title_credit": "kreditfaktura|kreditnota",
        "title_other": "offert|paminnelse|tilbud",
        "recipient": "faktureras till|fakturaadress",
    },
}

LANGUAGES_DAY_FIRST = frozenset({"de", "fr", "nl", "es", "it", "pt", "sv"})

# Phrases up to this length must stand as a word of their own; longer ones are distinctive enough inside a run that
# lost its spaces.
SHORT_PHRASE_MAX = 6


@dataclass(frozen=True, slots=True)
class FoundLabel:
    """A label in a text at [start, end). `languages` are those in which the phrase means this."""

    label: Label
    phrase: str
    start: int
    end: int
    languages: frozenset[str]


@functools.cache
def _table() -> tuple[dict[str, dict[Label, frozenset[str]]], tuple[str, ...]]:
    """phrase -> label -> languages, and all phrases from the longest to the shortest."""
    table: dict[str, dict[Label, frozenset[str]]] = {}
    for language, labels in _PHRASES.items():
        for label, phrases in labels.items():
            for phrase in phrases.split("|"):
                key = phrase.replace(" ", "")
                known = table.setdefault(key, {})
                known[label] = known.get(label, frozenset()) | {language}
    return table, tuple(sorted(table, key=lambda key: (-len(key), key)))


@functools.cache
def _by_head() -> dict[str, tuple[str, ...]]:
    """The phrases by their first two characters, longest first: most positions then need no comparison at all."""
    heads: dict[str, list[str]] = {}
    for phrase in _table()[1]:
        heads.setdefault(phrase[:2], []).append(phrase)
    return {head: tuple(phrases) for head, phrases in heads.items()}


def squash(text: str) -> tuple[str, list[int]]:
    """The letters and digits of a text, plain and lower case, and where each one stood."""
    out: list[str] = []
    at: list[int] = []
    for index, character in enumerate(text):
        for part in unicodedata.normalize("NFKD", character.casefold()):
            if part.isascii() and part.isalnum():
                out.append(part)
                at.append(index)
    return "".join(out), at


def find_labels(text: str) -> list[FoundLabel]:
    """All labels of a text from left to right; a phrase that means several things appears once for each."""
    flat, at = squash(text)
    table, _ = _table()
    heads = _by_head()
    found: list[FoundLabel] = []
    position = 0
    while position < len(flat):
        phrase = next(
            (
                p
                for p in heads.get(flat[position : position + 2], ())
                if flat.startswith(p, position) and _bounded(text, flat, at, position, p)
            ),
            None,
        )
        if phrase is None:
            position += 1
            continue
        start, end = at[position], at[position + len(phrase) - 1] + 1
        found.extend(FoundLabel(label, phrase, start, end, langs) for label, langs in table[phrase].items())
        position += len(phrase)
    return found


def _bounded(text: str, flat: str, at: list[int], position: int, phrase: str) -> bool:
    start, last = at[position], at[position + len(phrase) - 1]
    if start > 0 and text[start - 1].isalnum():
        # Inside a run: only where a capital starts a word ("InvoiceDate"), or after a figure ("20%Tax").
        before, here = text[start - 1], text[start]
        if not (before.islower() and here.isupper()) and not (before.isdigit() and here.isalpha()):
            return False
    if last + 1 < len(text) and text[last + 1].isalpha():
        here, after = text[last], text[last + 1]
        if here.islower() and after.isupper():
            return True
        return len(phrase) > SHORT_PHRASE_MAX and _lost_spaces(text)
    # A short phrase must not be spread over several words: "in c. l." is not "incl".
    return len(phrase) > SHORT_PHRASE_MAX or not re.search(r"\s", text[start : last + 1]) or phrase in _SPACED_SHORT


_SPACED_SHORT = frozenset(
    key.replace(" ", "")
    for labels in _PHRASES.values()
    for phrases in labels.values()
    for key in phrases.split("|")
    if " " in key and len(key.replace(" ", "")) <= SHORT_PHRASE_MAX
)


def _lost_spaces(text: str) -> bool:
    """Whether the run looks like OCR output that lost its spaces: long and without one."""
    letters = sum(c.isalpha() for c in text)
    return letters > 12 and text.count(" ") * 9 < letters
